"""The tests of ringzero; they mirror the source tree."""
