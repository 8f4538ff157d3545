"""The images that can be asked for by name, one module each (see `ringzero.image.names`)."""
