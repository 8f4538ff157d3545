"""Boot protocols: how a kernel and its parameters are laid out in guest memory."""
