"""Classified generation: a classifier of real items must see in each made one what its prompt asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.svm import SVC

from janus_plugins.core.errors import DataError
from janus_plugins.core.facts import EvaluationFacts
from janus_plugins.core.samples import Item, Sample
from janus_plugins.tasks.classified_generation.spec import ClassifiedGenerationConfig

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
        train, test = _read(others[config.train_source]), _read(source)
        modality = test[0][1].modality
        judge = SVC(C=10.0).fit(_real(model, train), [prompt for prompt, _ in train])
        labels = [prompt for prompt, _ in test]
        codes = model.encode(modality, [item.value for _, item in test])
        rebuilt = np.stack([_features(one) for one in model.decode(modality, codes)])
        prompts = sorted(set(labels))
        made = model.generate(
            prompts, modality=modality, num_per_prompt=config.num_per_prompt, guidance=config.guidance,
            temperature=config.temperature, seed=config.seed, max_rows=config.max_rows,
        )  # fmt: skip
        seen = judge.predict(np.stack([_features(one.artefact) for one in made]))
        hits = [one.prompt == label for one, label in zip(made, seen, strict=True)]
        by_prompt = {
            prompt: float(np.mean([hit for one, hit in zip(made, hits, strict=True) if one.prompt == prompt]))
            for prompt in prompts
        }
        ceilings = {
            "real": float(judge.score(_real(model, test), labels)),
            "reconstructed": float(judge.score(rebuilt, labels)),
        }
        score = float(np.mean(hits))
        return {"score": score, "samples": len(hits), "ceilings": ceilings, "by_prompt": by_prompt}


def _read(source: Source) -> list[tuple[str, Item]]:
    """Return the prompt and the item of every sample."""
    return [_generated(source[index]) for index in range(len(source))]


def _generated(sample: Sample) -> tuple[str, Item]:
    prompt = "".join(
        part for turn in sample.turns if turn.role == "user" for part in turn.parts if isinstance(part, str)
    )
    items = [part for turn in sample.turns for part in turn.parts if isinstance(part, Item) and part.learn]
    if len(items) != 1:
        raise DataError(f"{sample.key}: classified-generation needs samples that generate one item each")
    return prompt, items[0]


def _real(model: TrainedModel, pairs: list[tuple[str, Item]]) -> np.ndarray:
    """Return real items as the encoder's processor shows them, brought back to artefacts [N, F]."""
    processor = model.processor(pairs[0][1].modality)
    return np.stack([_features(processor.restore(processor(item.value)["pixels"])) for _, item in pairs])


def _features(artefact: Any) -> np.ndarray:
    return np.asarray(artefact.convert("L"), dtype=np.float32).reshape(-1) / 255
