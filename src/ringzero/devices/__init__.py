"""Devices of the machine; they never see an engine. May import: the layers up to disk.

`contract` says what a device is. Each other module is one device, found by
the registry under its module's name; `virtio` holds the virtio devices, their
virtqueues and the transport. To write one, copy `virtio/kinds/rng.py` and
read `docs/add-a-device.md`.
"""
