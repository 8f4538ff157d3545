"""The language of libvirt's clients: its remote protocol and its XML. It does no I/O."""
