"""The host's side of a user-mode network: sockets of the host for the guests' connections."""
