"""Doors: each translates between a wire of others and the actions (`ringzero.api`)."""
