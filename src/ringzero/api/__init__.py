"""What can be asked of machines and of this host, as data; no engine, no I/O."""
