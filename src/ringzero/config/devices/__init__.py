"""The kinds of devices that a description may name, one module each."""
