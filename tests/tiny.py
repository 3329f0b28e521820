"""A run file small enough for tests: every room, real components, a few thousand parameters."""

from __future__ import annotations

from pathlib import Path

TINY = """
name: tiny
seed: 3
model:
  language_model:
    use: llama
    options: {vocab_size: 64, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2, max_positions: 128}
    tokenizer: {type: trained, level: word, vocab_size: 64}
    template: plain
  understanding:
    image:
      encoder: {use: siglip, options: {img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}}
      adapter: {use: mlp}
  generation:
    image:
      encoder:
        use: vq
        options: {image_size: 8, channels: 8, multipliers: [1, 2], num_res_blocks: 1, z_channels: 8,
                  codebook_size: 16, code_width: 4, norm_groups: 4}
      adapter: {use: code-mlp}
      head: {use: code-mlp}
data:
  read: {use: digits, task: understanding, options: {ask: understanding, size: 8}}
  draw: {use: digits, task: generation, options: {ask: generation, size: 8}}
  sort: {use: sorting, task: text}
  read_test: {use: digits, task: understanding, split: test, options: {ask: understanding, size: 8, split: test}}
  draw_test: {use: digits, task: generation, split: test, options: {ask: generation, size: 8, split: test}}
stages:
  - name: tokenizer
    reconstruct: image
    learn: {generation.image.encoder: 1.0e-3}
    steps: 2
    batch: 4
    max_length: 64
  - name: adapters
    learn: {understanding.image.adapter: 1.0e-3, generation.image.adapter: 1.0e-3, generation.image.head: 1.0e-3}
    mix: {understanding: 1, generation: 1}
    steps: 2
    batch: 4
    max_length: 64
  - name: finetune
    learn: {language_model: 1.0e-3, understanding: 1.0e-3, generation.image.adapter: 1.0e-3, generation.image.head: 1.0e-3}
    mix: {understanding: 1, text: 1, generation: 2}
    steps: 2
    batch: 4
    drop_prompt: 0.5
    max_length: 64
engine: {save_every: 2}
evaluation:
  understanding: {task: exact-match, source: read_test, options: {limit: 4, max_new_tokens: 2}}
  generation:
    task: classified-generation
    source: draw_test
    options: {train_source: draw, num_per_prompt: 1, guidance: 2.0}
"""


def write_tiny(folder: Path, extra: str = "") -> Path:
    """Write the tiny run file into `folder`, with `extra` YAML appended."""
    path = folder / "tiny.yaml"
    path.write_text(TINY + extra, encoding="utf-8")
    return path
