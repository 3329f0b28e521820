"""Stages, losses, the DeepSpeed engine, the loop and its checkpoints."""
