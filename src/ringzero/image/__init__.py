"""Guest images, made of packages, cached by content. May import: everything but the faces."""
