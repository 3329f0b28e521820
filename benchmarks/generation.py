"""Measure greedy image generation against transformers' own `generate` and the official loop, same weights.

Run `python -m benchmarks.generation [--size 7.5M|170M]`. Codes must be equal before a ratio is printed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks import harness, models
from janus_plugins.inference.prompts import item_prompt
from janus_plugins.inference.session import generate
from janus_plugins.model.unified import UnifiedModel

PROMPT = "a red cube on a blue table"
GUIDANCE = 5.0


@torch.inference_mode()
def official_loop(foreign: Any, rows: tuple[list[int], list[int]], steps: int) -> Tensor:
    """Generate the way of the official script: growing cache, conditional and unconditional interleaved."""
    core = foreign.model
    embeds = core.language_model.get_input_embeddings()(torch.tensor(rows, device=foreign.device))
    cache, made = DynamicCache(), torch.zeros((1, steps), dtype=torch.int64, device=foreign.device)
    for step in range(steps):
        answer = core.language_model(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        logits = core.generation_head(answer.last_hidden_state[:, -1, :])
        conditional, unconditional = logits[0::2, :], logits[1::2, :]
        logits = unconditional + GUIDANCE * (conditional - unconditional)
        code = logits.argmax(-1, keepdim=True)
        made[:, step] = code[:, 0]
        both = torch.cat((code, code), dim=1).view(-1)
        embeds = core.generation_aligner(core.generation_embeddings(both))[:, None]
    return made


def transformers_way(foreign: Any, model: UnifiedModel, conditional: list[int]) -> Tensor:
    """Generate by `JanusForConditionalGeneration.generate`, greedily."""
    ids = torch.tensor([conditional], device=foreign.device)
    template, tokenizer = model.template, model.tokenizer
    answer: Tensor = foreign.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=False,
        guidance_scale=GUIDANCE,
        bos_token_id=tokenizer.id_of(template.bos),
        pad_token_id=tokenizer.id_of(template.pad),
        generation_kwargs={"boi_token_id": conditional[-1]},
    )
    return answer


def measure(size: str, rounds: int) -> tuple[harness.Comparison, bool]:
    """Compare the ways at one size; also say whether all codes but those of fewer bits were equal."""
    model = models.ours(size)
    foreign = models.theirs(model)
    prompt = item_prompt(model, "image", PROMPT, [0])
    steps = model.plan.model.generation["image"].facts.tokens

    def by(linears: str = "packed", **options: Any) -> Tensor:
        options = {"linears": linears, **options}
        made = generate(model, PROMPT, guidance=GUIDANCE, temperature=0, return_codes=True, **options)
        assert isinstance(made, Tensor)
        return made

    ways = {
        "ours": lambda: by(),
        "ours, compiled": lambda: by(compile=True),
        "ours, guesses checked (jacobi)": lambda: by(decoding="jacobi", window=4),
        "ours, plain linear layers": lambda: by("plain"),
        "ours, 8 bits": lambda: by("int8"),
        "ours, 4 bits": lambda: by("int4"),
        "ours, 8 bits, compiled": lambda: by("int8", compile=True),
        "ours, 4 bits, compiled": lambda: by("int4", compile=True),
        "transformers generate": lambda: transformers_way(foreign, model, list(prompt.conditional)),
        "official-style loop": lambda: official_loop(
            foreign, (list(prompt.conditional), list(prompt.unconditional)), steps
        ),
    }
    started = time.process_time()
    by(compile=True)
    compiling = time.process_time() - started
    made = {label: way() for label, way in ways.items()}
    equal = all(torch.equal(codes, made["ours"]) for label, codes in made.items() if "bits" not in label)
    weights = models.decoding_parameters(model)
    read = "the weights are read, and no more"
    ways[read] = harness.reading(weights * 4 * steps)
    compared = harness.compare(f"{size} parameters, 1 image, {steps} codes, fp32", ways, rounds)
    compared.counts = {
        "parameters read by a step": weights,
        "language model calls": steps,
        "different codes": made["ours"].unique().numel(),
        "codes equal in 8 bits": (made["ours, 8 bits"] == made["ours"]).float().mean().item(),
        "codes equal in 4 bits": (made["ours, 4 bits"] == made["ours"]).float().mean().item(),
        "bytes/s of one thread": weights * 4 * steps / compared.median(read),
        "share of the bandwidth roofline": compared.median(read) / compared.median("ours"),
        "share, compiled": compared.median(read) / compared.median("ours, compiled"),
        "CPU s to compile, once": compiling,
    }
    return compared, equal


def main() -> int:
    """Measure the sizes asked for."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--size", choices=[*models.SIZES], action="append", help="default: all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    compared = []
    for size in given.size or models.SIZES:
        one, equal = measure(size, given.rounds)
        if not equal:
            print(f"{size}: the codes are not equal; no ratio is printed", file=sys.stderr)
            return 1
        compared.append(one)
    return harness.report("generation", compared, given.force)


if __name__ == "__main__":
    sys.exit(main())
