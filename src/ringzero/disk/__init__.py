"""Disk images of every format behind one open_disk(). May import: the ground, config, host, core."""
