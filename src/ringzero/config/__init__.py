"""Frozen dataclasses that describe a machine. May import: the ground."""
