"""The commands of `ringzero image`, a module each."""
