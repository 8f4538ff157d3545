"""Guest memory, buses, interrupt lines and the state contract. May import: the ground, config, host."""
