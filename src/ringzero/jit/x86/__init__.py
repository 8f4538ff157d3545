"""Translation of x86-64 guests: operands, stencils, handlers, the translator."""
