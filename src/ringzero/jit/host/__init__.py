"""The host processor's code: object files, relocations, calling convention."""
