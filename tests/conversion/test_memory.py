"""Conversions and loading hold tensors, not checkpoints: peak memory, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conversion.made import make_extras, make_tokenizer, write_official

LIMIT = 1.3
"""Peak memory beyond the libraries' own, as a multiple of the checkpoint."""

WIDTH, INNER, LAYERS = 512, 1536, 24

MEASURE = """
import json, os, sys
import janus_plugins as jp

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def measured(run):
    # A child for each step: what one frees is not there to be used again by the next.
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return json.load(open(out + "/peak"))
    open("/proc/self/clear_refs", "w").write("5")  # forget the parent's peak
    before = peak()
    kept = run()
    json.dump(peak() - before, open(out + "/peak", "w"))
    os._exit(0)

small, large, out = sys.argv[1:]
jp.load(small)  # every library is imported now
steps = {
    "small": lambda: jp.load(small),
    "bin to native": lambda: jp.convert(large, out + "/n"),
    "native to transformers": lambda: jp.convert(out + "/n", out + "/t", layout="transformers"),
    "transformers to official": lambda: jp.convert(out + "/t", out + "/o", layout="official"),
    "load bin": lambda: jp.load(large),
    "load native": lambda: jp.load(out + "/n"),
    "load transformers": lambda: jp.load(out + "/t"),
}
print(json.dumps({name: measured(run) for name, run in steps.items()}))
"""


def large_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The made model with a larger language model: some 200 MB in bf16."""
    kept = {
        name: value
        for name, value in tensors.items()
        if not name.startswith(("language_model.", "aligner", "gen_aligner", "gen_head"))
    }
    shapes = {
        "language_model.model.embed_tokens.weight": (8000, WIDTH),
        "language_model.lm_head.weight": (8000, WIDTH),
        "language_model.model.norm.weight": (WIDTH,),
        "aligner.layers.0.weight": (WIDTH, 32),
        "gen_aligner.layers.0.weight": (WIDTH, 8),
        "gen_head.output_mlp_projector.weight": (WIDTH, WIDTH),
        "gen_head.output_mlp_projector.bias": (WIDTH,),
        "gen_head.vision_head.weight": (64, WIDTH),
        "gen_head.vision_head.bias": (64,),
    }
    for name in ("aligner", "gen_aligner"):
        shapes |= {f"{name}.layers.0.bias": (WIDTH,), f"{name}.layers.2.weight": (WIDTH, WIDTH)}
        shapes |= {f"{name}.layers.2.bias": (WIDTH,)}
    for layer in range(LAYERS):
        stem = f"language_model.model.layers.{layer}"
        shapes |= {f"{stem}.self_attn.{each}_proj.weight": (WIDTH, WIDTH) for each in "qkvo"}
        shapes |= {f"{stem}.mlp.{each}_proj.weight": (INNER, WIDTH) for each in ("gate", "up")}
        shapes |= {f"{stem}.mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{stem}.{each}_layernorm.weight": (WIDTH,) for each in ("input", "post_attention")}
    return {**kept, **{name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}}


@pytest.mark.slow
def test_peak_memory(official: Path, tensors: dict[str, Tensor], tmp_path: Path):
    assert make_extras().keys() <= tensors.keys()
    made = large_tensors(tensors)
    folder = write_official(tmp_path / "large", made, make_tokenizer(), form="bin")
    config = json.loads((folder / "config.json").read_text())
    config["language_config"] |= {
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8000,
    }  # fmt: skip
    config["gen_head_config"]["params"] |= {"image_token_embed": WIDTH, "n_embed": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    size = sum(value.nbytes for value in made.values())
    assert 180e6 < size < 260e6
    command = [sys.executable, "-c", MEASURE, str(official), str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    found = json.loads(done.stdout.splitlines()[-1])
    own = found.pop("small")  # what a child of the process takes for itself
    peaks = {name: round((value - own) / size, 3) for name, value in found.items()}
    assert all(value < LIMIT for value in peaks.values()), peaks
    assert all(value > 0.9 for name, value in peaks.items() if name.startswith("load")), peaks  # it is seen
    assert all(value < 0.5 for name, value in peaks.items() if " to " in name), peaks
    print(peaks)
