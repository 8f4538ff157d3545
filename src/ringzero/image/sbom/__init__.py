"""What software an image holds: read from the databases of its package managers."""
