"""Contracts, specs, plugin loading, run files and wiring. Nothing here imports torch."""
