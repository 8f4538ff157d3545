"""What can be shared with a guest, one module each."""
