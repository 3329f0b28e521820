"""Pitch: a made sound must have that of the real sounds of its caption, measured on the signal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.samples import generated
from janus_plugins.tasks.pitch.measure import pitch_of
from janus_plugins.tasks.pitch.spec import PitchConfig

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source, TrainedModel


class Pitch:
    """Generate sounds of every distinct caption of a source; score the share whose pitch is right.

    Right is the median pitch of the real sounds of the same caption, measured in the same way. The share of
    real sounds, and of their reconstructions through the generation encoder, that are right, are the
    ceilings beside the score. A sound without a pitch counts as wrong.
    """

    def __init__(self, config: PitchConfig, facts: EvaluationFacts) -> None:
        self._config = config

    def __call__(self, model: TrainedModel, source: Source, others: Mapping[str, Source]) -> dict[str, Any]:
        """Return score, ceilings and accuracy by caption; see `core.contracts.EvaluationTask`."""
        config = self._config
        labels, items = zip(*(generated(source[index]) for index in range(len(source))), strict=True)
        modality, values = items[0].modality, [item.value for item in items]
        real = _heard([_as_encoded(model, modality, value) for value in values])
        rebuilt = _heard(model.decode(modality, model.encode(modality, values)))
        wanted = {
            label: float(np.median([seen for seen, own in zip(real, labels, strict=True) if own == label]))
            for label in sorted(set(labels))
        }
        made = model.generate(
            list(wanted), modality=modality, num_per_prompt=config.num_per_prompt, guidance=config.guidance,
            temperature=config.temperature, seed=config.seed, max_rows=config.max_rows, items={},
        )  # fmt: skip

        def right(label: str, seen: float) -> bool:
            return bool(abs(seen / wanted[label] - 1) <= config.within)

        hits = [
            right(one.prompt, seen)
            for one, seen in zip(made, _heard([one.artefact for one in made]), strict=True)
        ]
        by_prompt = {
            label: float(np.mean([hit for one, hit in zip(made, hits, strict=True) if one.prompt == label]))
            for label in wanted
        }
        ceilings = {
            "real_pitch": float(np.mean([right(*each) for each in zip(labels, real, strict=True)])),
            "reconstructed_pitch": float(
                np.mean([right(*each) for each in zip(labels, rebuilt, strict=True)])
            ),
        }
        score = float(np.mean(hits))
        return {"score": score, "samples": len(hits), "ceilings": ceilings, "by_prompt": by_prompt}


def _heard(artefacts: list[Any]) -> list[float]:
    return [pitch_of(np.asarray(one, np.float64).reshape(-1)) for one in artefacts]


def _as_encoded(model: TrainedModel, modality: str, value: object) -> Any:
    """Return a raw item as the encoder's processor shows it, brought back to an artefact."""
    processor = model.processor(modality)
    (signal, *_) = processor(value).values()
    return processor.restore(signal)
