"""The backends of devices that have one, one module each, under the device's kind."""
