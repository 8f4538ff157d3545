"""The host's half: machines' directories, starting a machine's process, its client."""
