"""What runs inside the guest, as the image carries it: init and the identity program."""
