"""libvirt's XML: documents as records and records as documents. It does no I/O."""
