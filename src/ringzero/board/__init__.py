"""Memory map, firmware tables, boot protocol of a machine. May import: the layers up to devices."""
