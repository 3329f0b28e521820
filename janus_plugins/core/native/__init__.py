"""Code in C for what decides how fast a CPU decodes, compiled where it runs."""
