"""Composition and the unified model."""
