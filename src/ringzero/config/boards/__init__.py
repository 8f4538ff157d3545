"""What each board has room for, one module each, under the board's name."""
