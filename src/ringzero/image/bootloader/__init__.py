"""What boot loaders' configurations say: which kernel, which initrds, which command line."""
