"""Architectures whose guests the software engine runs, each in a module of its name."""
