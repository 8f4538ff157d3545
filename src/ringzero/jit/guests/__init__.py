"""Guest ISAs that engines are compiled for, each in a module of its name."""
