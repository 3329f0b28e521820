"""What decides how fast a model decodes: code in C for a CPU, compiled where it runs, and in Triton for a GPU."""
