"""Machines that outlive a command, one process each. May import: everything but the faces."""
