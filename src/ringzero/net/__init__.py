"""Networks that a machine's interface can be connected to, and what they have in common."""
