"""Sampling, one decode loop for every path, and the session behind `ask` and `generate`."""
