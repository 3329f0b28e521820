"""Shipped adapters, one folder each."""
