"""Exact match: the share of samples that a model answers word for word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from janus_plugins.core.errors import DataError
from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.samples import Item, Sample, answered, asked, item_columns
from janus_plugins.tasks.exact_match.spec import ExactMatchConfig

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source, TrainedModel


class ExactMatch:
    """Answer every sample of a source greedily; score the share that is answered exactly."""

    def __init__(self, config: ExactMatchConfig, facts: EvaluationFacts) -> None:
        self._config = config

    def __call__(self, model: TrainedModel, source: Source, others: Mapping[str, Source]) -> dict[str, Any]:
        """Return the score, and of how many samples; see `core.contracts.EvaluationTask`."""
        config = self._config
        count = min(len(source), config.limit or len(source))
        batch = config.batch * getattr(model, "processes", 1)
        right = 0
        for start in range(0, count, batch):
            chunk = [source[index] for index in range(start, min(start + batch, count))]
            for system, samples in _by_system(chunk).items():
                questions, items, answers = zip(*map(_question, samples), strict=True)
                said = model.ask(
                    list(questions),
                    items=item_columns(items),
                    max_new_tokens=config.max_new_tokens,
                    temperature=0.0,
                    **({} if system is None else {"system": system}),
                )
                right += sum(_same(one, other) for one, other in zip(said, answers, strict=True))
        return {"score": right / count, "samples": count}


def _by_system(samples: Iterable[Sample]) -> dict[str | None, list[Sample]]:
    """Return samples by the system prompt that they bring; None where the template's holds."""
    found: dict[str | None, list[Sample]] = {}
    for sample in samples:
        texts = ["".join(map(str, turn.parts)) for turn in sample.turns if turn.role == "system"]
        found.setdefault("".join(texts).strip() if texts else None, []).append(sample)
    return found


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _question(sample: Sample) -> tuple[str, list[Item], str]:
    """Split a sample into its question, the items it shows, and the expected answer."""
    answer = answered(sample)
    if any(isinstance(part, Item) for part in answer):
        raise DataError(f"{sample.key}: exact-match needs samples whose answers are text alone")
    return *asked(sample), "".join(map(str, answer))
