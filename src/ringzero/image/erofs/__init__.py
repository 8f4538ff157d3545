"""EROFS, Linux's read-only file system: images of it are written here, without compression."""
