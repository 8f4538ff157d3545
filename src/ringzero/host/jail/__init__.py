"""What confines the calling process: Landlock, seccomp, capabilities, namespaces, limits.

Each module is one mechanism of the kernel's, with no knowledge of machines; `confine` puts them
together, and `probe` says which of them this host allows.
"""
