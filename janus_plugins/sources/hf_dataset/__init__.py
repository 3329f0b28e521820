"""Anything that the `datasets` library can open."""
