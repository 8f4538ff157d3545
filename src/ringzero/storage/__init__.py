"""Storage pools: directories of the host whose files are volumes, disks of machines."""
