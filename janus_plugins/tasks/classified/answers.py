"""Score answers that hold items: made from prompts with items, or text and items in turn.

A classifier of real items reads each item that was made; it must read what it reads in the sample's own
item at the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_plugins.core.errors import DataError
from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.samples import Item, Part, Sample, answered, asked, item_columns
from janus_plugins.tasks.classified.answers_spec import ClassifiedAnswersConfig
from janus_plugins.tasks.classified.judge import Judge, samples_of

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source, TrainedModel

Said = Sequence[Any]
"""Text, and generated items."""


class ClassifiedAnswers:
    """Answer the prompts of a source; score the share of answers that are right in every part.

    Beside it stand the share of answers whose text is right and holds its items at the right places
    ("text"), and of items that are at their place and are read as the sample's own ("items").
    """

    def __init__(self, config: ClassifiedAnswersConfig, facts: EvaluationFacts) -> None:
        self._config = config

    def __call__(self, model: TrainedModel, source: Source, others: Mapping[str, Source]) -> dict[str, Any]:
        """Return the score, and text and items apart; see `core.contracts.EvaluationTask`."""
        settings, samples = self._config, samples_of(source)
        samples = [samples[index] for index in spread(len(samples), settings.limit)]
        wanted = [_answer(sample) for sample in samples]
        judge = Judge(model, others[settings.train_source])
        said = _said(model, samples, settings)
        texts = [_shape(one) == _shape(other) for one, other in zip(said, wanted, strict=True)]
        items = [_items_right(judge, one, other) for one, other in zip(said, wanted, strict=True)]
        right = [text and all(each) for text, each in zip(texts, items, strict=True)]
        return {
            "score": float(np.mean(right)),
            "samples": len(samples),
            "text": float(np.mean(texts)),
            "items": float(np.mean([hit for each in items for hit in each])),
            **judge.passed_over(),
        }


def spread(number: int, limit: int | None) -> list[int]:
    """Return at most `limit` of `number` indices, as far apart as can be."""
    count = number if limit is None else min(number, limit)
    return [place * number // count for place in range(count)]


def _answer(sample: Sample) -> Sequence[Part]:
    parts = answered(sample)
    if not any(isinstance(part, Item) and part.learn for part in parts):
        raise DataError(f"{sample.key}: classified-answers needs samples whose answers hold items")
    return parts


def _said(model: TrainedModel, samples: Sequence[Sample], settings: ClassifiedAnswersConfig) -> list[Said]:
    prompts, items = zip(*map(asked, samples), strict=True)
    common: dict[str, Any] = {
        "items": item_columns(items),
        "guidance": settings.guidance,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "max_rows": settings.max_rows,
    }
    if any(sample.task == "interleaved" for sample in samples):
        limits = {"max_new_tokens": settings.max_new_tokens, "max_items": settings.max_items}
        return [one.parts for one in model.generate(list(prompts), interleaved=True, **limits, **common)]
    (item,) = {part.modality for part in _answer(samples[0]) if isinstance(part, Item)}
    return [[one] for one in model.generate(list(prompts), modality=item, **common)]


def _shape(parts: Sequence[Any]) -> list[object]:
    """Return texts without case and outer spaces, and the modalities of items, in order."""
    return [
        part.strip().casefold() if isinstance(part, str) else (part.modality,)
        for part in parts
        if not isinstance(part, str) or part.strip()
    ]


def _items_right(judge: Judge, said: Said, wanted: Sequence[Part]) -> list[bool]:
    """Say of each of a sample's items whether the answer's at its place is read as it."""
    made = [part for part in said if not isinstance(part, str)]
    real = [part for part in wanted if isinstance(part, Item)]
    both = min(len(made), len(real))
    if not both:
        return [False] * len(real)
    seen = judge.read([one.artefact for one in made[:both]])
    meant = judge.read_real([item.value for item in real[:both]])
    return [*map(bool, seen == meant), *[False] * (len(real) - both)]
