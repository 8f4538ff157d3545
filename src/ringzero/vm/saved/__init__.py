"""Machines written down: snapshots and their store."""
