"""File systems in disk images, read by the host: no mount, no root, no writing."""
