"""The images that can be asked for by name, one module each (see `ringzero.vm.images`)."""
