"""Small platform devices: serial port, clock, keyboard controller, power."""
