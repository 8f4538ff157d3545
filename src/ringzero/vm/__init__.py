"""Builds a machine from its config and runs it. May import: everything but image and the faces."""
