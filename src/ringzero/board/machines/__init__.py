"""The boards, one module each, found by the registry."""
