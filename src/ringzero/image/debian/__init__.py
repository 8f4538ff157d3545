"""Debian's archive by our own code, for hosts without apt."""
