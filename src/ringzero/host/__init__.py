"""The only code that talks to the operating system: mmap, ioctl, terminals. May import: the ground, config."""
