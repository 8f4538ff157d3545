"""Layers of container images: tar archives, and the file tree that they make together."""
