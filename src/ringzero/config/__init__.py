"""Frozen dataclasses that describe a machine. May import: the ground (errors, units, settings, registry)."""
