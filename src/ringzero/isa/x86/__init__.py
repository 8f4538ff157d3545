"""x86-64 as facts: register state, CPUID models, instructions. May import: the ground, core."""
