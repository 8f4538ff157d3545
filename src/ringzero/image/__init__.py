"""Guest images, put together from packages and cached by content. May import: everything but the faces."""
