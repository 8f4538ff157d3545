"""virtio 1.2 devices over split virtqueues. May import: the layers up to disk.

`queue` is the virtqueue, `device` what a virtio device is, `mmio` the
transport. Each other module is one device; `rng` is the one to copy.
"""
