"""Public test helpers for plugin authors."""
