"""Building images: a Vmfile's steps, each on top of what the step before left."""
