"""Signatures of images, as cosign makes them and checks them."""
