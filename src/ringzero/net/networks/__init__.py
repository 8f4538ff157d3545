"""The networks, one module each, found by the registry."""
