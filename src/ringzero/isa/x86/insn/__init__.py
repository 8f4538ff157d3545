"""Semantics of the instructions that programs use, by group."""
