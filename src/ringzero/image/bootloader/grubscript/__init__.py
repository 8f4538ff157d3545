"""GRUB's scripting language: words, grammar, expressions, and what runs it."""
