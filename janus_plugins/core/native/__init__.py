"""What decides how fast a model decodes: in C for a CPU, compiled where it runs, in Triton for a GPU."""
