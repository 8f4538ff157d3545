"""CPU engines behind one contract. May import: all layers above it in DESIGN, never devices."""
