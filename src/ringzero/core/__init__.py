"""Guest memory, buses, interrupt lines, the state contract. May import: ground, config, host."""
