"""The file systems that can be read; each module is one (`ringzero.image.fs.contract`)."""
