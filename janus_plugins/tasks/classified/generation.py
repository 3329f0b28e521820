"""Classified generation: a classifier of real items must see in each made one what its prompt asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.samples import generated
from janus_plugins.tasks.classified.generation_spec import ClassifiedGenerationConfig
from janus_plugins.tasks.classified.judge import Judge, samples_of

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source, TrainedModel


class ClassifiedGeneration:
    """Generate from every distinct prompt of a source; score with a classifier of real items.

    The classifier (an RBF support-vector machine) sees only the real items of `train_source`. Its
    accuracy on the real held-out items, and on their reconstructions through the generation encoder,
    are the ceilings beside the score.
    """

    def __init__(self, config: ClassifiedGenerationConfig, facts: EvaluationFacts) -> None:
        self._config = config

    def __call__(self, model: TrainedModel, source: Source, others: Mapping[str, Source]) -> dict[str, Any]:
        """Return score, ceilings and accuracy by prompt; see `core.contracts.EvaluationTask`."""
        config = self._config
        judge = Judge(model, others[config.train_source])
        labels, items = zip(*map(generated, samples_of(source)), strict=True)
        modality, values = items[0].modality, [item.value for item in items]
        rebuilt = model.decode(modality, model.encode(modality, values))
        prompts = sorted(set(labels))
        made = model.generate(
            prompts, modality=modality, num_per_prompt=config.num_per_prompt, guidance=config.guidance,
            temperature=config.temperature, seed=config.seed, max_rows=config.max_rows, items={},
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
        score = float(np.mean(hits))
        return {
            "score": score,
            "samples": len(hits),
            "ceilings": ceilings,
            "by_prompt": by_prompt,
            **judge.passed_over(),
        }
