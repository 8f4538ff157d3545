"""Folders of the host in a machine: file systems (back ends), and the protocols that serve them."""
