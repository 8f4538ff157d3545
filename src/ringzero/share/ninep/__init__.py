"""9P2000.L as virtio carries it: the messages (`wire`) and who answers them (`server`)."""
