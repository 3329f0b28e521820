"""Shipped encoders, one folder each."""
