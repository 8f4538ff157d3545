"""The host's ends of devices that lead out of the machine."""
