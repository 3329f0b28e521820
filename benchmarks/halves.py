"""Measure a bf16 model on a CPU without instructions for bf16: answers, codes, pictures decoded and learning.

Run `OMP_NUM_THREADS=1 python -m benchmarks.halves`. The parts have the reference's widths and fewer layers:
SigLIP-L with 2 of 24, a language model 2,048 wide with 2 of 24, the VQ decoder whole, but on 96 by 96 pixels.
Ours (`janus_plugins/inference/halves.py`, and for codes products in C, `janus_plugins/core/native`) against
what torch does, and against the same weights in fp32.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import harness
from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.inference import halves, linears
from janus_plugins.model.compose import compose_plan

RUN = """
name: halves
seed: 1
model:
  language_model:
    use: llama
    options: {vocab_size: 512, hidden_size: 2048, intermediate_size: 5632, num_layers: 2, num_heads: 16,
              max_positions: 4096}
    tokenizer: {type: bytes}
    template: deepseek-old
  understanding:
    image:
      encoder:
        use: siglip
        options: {img_size: 384, patch_size: 16, embed_dim: 1024, depth: 2, num_heads: 16}
      adapter: {use: mlp}
  generation:
    image:
      encoder: {use: vq, options: {image_size: 96}}
      adapter: {use: code-mlp}
      head: {use: code-mlp}
"""


def learnt(model: nn.Module, pixels: np.ndarray) -> None:
    """Take a picture forward and back through SigLIP, as training does."""
    encoder = model.get_submodule("understanding.image.encoder")
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with halves.widened(encoder):
        encoder({"pixels": given}).square().mean().backward()
    encoder.zero_grad()


def main() -> int:
    """Measure all uses."""
    given = harness.options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    if not halves.is_slow(torch.bfloat16, torch.device("cpu")):
        print("this CPU has instructions for bf16: there is nothing to compare")
        return 0
    exact = compose_plan(resolve(load_run_text(RUN, "halves.yaml"))).eval()
    half = copy.deepcopy(exact).to(torch.bfloat16)
    pixels = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    codes = torch.randint(0, 16_384, (1, 36), generator=torch.Generator().manual_seed(0))

    def plainly(run: Callable[[], object]) -> Callable[[], object]:
        def plain() -> object:
            with (
                mock.patch.object(halves, "is_slow", return_value=False),
                mock.patch.object(linears, "is_slow", return_value=False),
            ):
                return run()

        return plain

    def compare(name: str, run: Callable[[object], object]) -> harness.Comparison:
        ways = {
            "ours": lambda: run(half),
            "bf16 as torch computes it": plainly(lambda: run(half)),
            "fp32": lambda: run(exact),
        }
        return harness.compare(name, ways, given.rounds)

    made = [
        compare(
            "a question about a picture, one token, bf16",
            lambda model: model.ask("what is it?", images=[picture], max_new_tokens=1),  # type: ignore[attr-defined]
        ),
        compare(
            "36 codes made, guidance 5, bf16",
            lambda model: model.generate("a cube", guidance=5.0, temperature=0, return_codes=True),  # type: ignore[attr-defined]
        ),
        compare(
            "36 codes decoded, bf16",
            lambda model: model.decode("image", codes),  # type: ignore[attr-defined]
        ),
        compare("a picture learnt from by SigLIP, bf16", lambda model: learnt(model, pixels)),
    ]
    return harness.report("halves", made, given.force)


if __name__ == "__main__":
    sys.exit(main())
