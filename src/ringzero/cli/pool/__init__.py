"""Pools: processes that keep machines ready for `ringzero run`."""
