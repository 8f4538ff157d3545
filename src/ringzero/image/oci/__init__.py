"""OCI images: their names, registries, layouts on a disk, and what of them a machine needs."""
