"""The virtio devices, one module each; `rng` is the one to copy."""
