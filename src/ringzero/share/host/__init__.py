"""What the back end `host` is made of: owners, descriptors, open files."""
