"""Stages, losses, the DeepSpeed engine, the loop, checkpoints. The only room that imports deepspeed."""
