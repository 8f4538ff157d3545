"""One machine's process: what keeps it, serves its socket, forks it."""
