"""Devices of the machine; they never see an engine. May import: the ground, config, host, core, disk."""
