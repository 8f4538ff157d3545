"""The kernel's KVM interface: structures, numbers, file descriptors."""
