"""The only code that talks to the operating system. May import: the ground, config."""
