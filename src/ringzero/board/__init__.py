"""A machine's memory map, firmware tables and boot protocol. May import: the layers up to devices."""
