"""Networks by name: described in a directory, one process each, which machines join."""
