"""Evaluation tasks: a model and a held-out source in, figures between 0 and 1 out.

A task is a function; `TASKS` names them. Options come from the run file and are validated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from janus_plugins.core.samples import Item, Sample
from janus_plugins.evaluation.answers import classified_answers
from janus_plugins.evaluation.entries import Options, columns, parsed, samples_of
from janus_plugins.evaluation.judge import Judge, generated

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel


class ExactMatch(Options):
    """Set `exact-match`: the model's answer must be the sample's, but for case and outer spaces."""

    max_new_tokens: int = Field(default=16, ge=1)
    limit: int | None = Field(default=None, ge=1, description="score the first so many samples only")
    batch: int = Field(default=64, ge=1)


class ClassifiedGeneration(Options):
    """Set `classified-generation`: a classifier of real items must see in each what its prompt asked for."""

    train_source: str = Field(description="data entry whose real items train the classifier")
    num_per_prompt: int = Field(default=20, ge=1)
    guidance: float = Field(default=5.0, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    seed: int = 0
    max_rows: int = Field(default=256, ge=2)


def exact_match(model: UnifiedModel, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Answer every sample of a source greedily; score the share that is answered exactly."""
    settings = parsed(ExactMatch, options, source)
    samples = samples_of(model, source)[: settings.limit]
    right = 0
    for start in range(0, len(samples), settings.batch):
        chunk = samples[start : start + settings.batch]
        questions, items, answers = zip(*map(_question, chunk), strict=True)
        said = model.ask(
            list(questions), items=columns(items), max_new_tokens=settings.max_new_tokens, temperature=0.0
        )
        right += sum(_same(one, other) for one, other in zip(said, answers, strict=True))
    return {"score": right / len(samples), "samples": len(samples)}


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _question(sample: Sample) -> tuple[str, list[Item], str]:
    """Split a sample into its question, the items it shows, and the expected answer."""
    asked = [part for turn in sample.turns if turn.role == "user" for part in turn.parts]
    answer = "".join(part for turn in sample.turns if turn.role == "assistant" for part in turn.parts)  # type: ignore[misc]
    items = [part for part in asked if isinstance(part, Item)]
    return "".join(part for part in asked if isinstance(part, str)), items, answer


def classified_generation(model: UnifiedModel, source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Generate from every distinct prompt of a source; score with a classifier of real items.

    The classifier (`judge.Judge`) sees only the real items of `train_source`. Its
    accuracy on the real held-out items, and on their reconstructions through the generation encoder,
    are the ceilings beside the score.
    """
    settings = parsed(ClassifiedGeneration, options, source)
    test = samples_of(model, source)
    judge = Judge.of(model, samples_of(model, settings.train_source))
    labels, items = zip(*map(generated, test), strict=True)
    modality, values = items[0].modality, [item.value for item in items]
    rebuilt = model.decode(modality, model.encode(modality, values))
    prompts = sorted(set(labels))
    made = model.generate(
        prompts, modality=modality, num_per_prompt=settings.num_per_prompt, guidance=settings.guidance,
        temperature=settings.temperature, seed=settings.seed, max_rows=settings.max_rows,
    )  # fmt: skip
    seen = judge.read([one.artefact for one in made])
    hits = [one.prompt == label for one, label in zip(made, seen, strict=True)]
    by_prompt = {
        prompt: float(np.mean([hit for one, hit in zip(made, hits, strict=True) if one.prompt == prompt]))
        for prompt in prompts
    }
    ceilings = {
        "real": float(np.mean(judge.read_real(values) == labels)),
        "reconstructed": float(np.mean(judge.read(rebuilt) == labels)),
    }
    return {"score": float(np.mean(hits)), "samples": len(hits), "ceilings": ceilings, "by_prompt": by_prompt}


Task = Callable[["UnifiedModel", str, Mapping[str, Any]], dict[str, Any]]

TASKS: dict[str, Task] = {
    "exact-match": exact_match,
    "classified-generation": classified_generation,
    "classified-answers": classified_answers,
}
