"""Tables that firmware leaves for the guest: ACPI."""
