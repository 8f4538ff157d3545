"""The instruction table, its notation, and the decoder built from it."""
