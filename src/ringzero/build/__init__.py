"""Building images: a Vmfile's steps, each run in a copy of the machine that the step before left."""
