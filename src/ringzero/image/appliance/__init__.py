"""Machines of other systems as they are handed on: OVF and OVA, boxes, .vmx, .vbox."""
