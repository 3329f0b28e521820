"""Shipped heads, one folder each."""
