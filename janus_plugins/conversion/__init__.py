"""Foreign checkpoint layouts, both ways: the official Janus one and transformers'."""
