"""FUSE as virtio-fs carries it: the messages (`wire`) and who answers them (`server`)."""
