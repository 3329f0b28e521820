"""Shipped sources, one folder each."""
