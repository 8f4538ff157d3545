"""virtio 1.2 devices over split virtqueues. May import: the layers up to disk.

`queue` is the virtqueue, `device` what a virtio device is, `mmio` a transport. The devices
themselves are in `kinds`.
"""
