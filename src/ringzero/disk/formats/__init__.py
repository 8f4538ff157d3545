"""One module (or package) per disk format, found by its name. `raw` is the one to copy.

See docs/add-a-disk-format.md. May import: the rest of `disk`, and what `disk` may import.
"""
