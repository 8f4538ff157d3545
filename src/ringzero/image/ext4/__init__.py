"""Writing ext4 file systems."""
