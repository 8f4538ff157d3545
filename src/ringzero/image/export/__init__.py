"""Images of the store as disks that boot by themselves."""
