"""The user network by itself: a guest of bytes, and servers on loopback."""

TARGET = ""
