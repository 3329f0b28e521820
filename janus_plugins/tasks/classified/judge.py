"""A classifier of real pictures, that reads made ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.svm import SVC

from janus_plugins.core.samples import Sample, generated

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source, TrainedModel


class Judge:
    """Read pictures with an RBF support-vector machine that has seen real ones alone.

    Args:
        model: whose generation path makes the pictures; real ones are shown as its encoder sees them.
        modality: that path's.
        samples: real pictures to learn from; the prompt of each is its class.
    """

    def __init__(self, model: TrainedModel, modality: str, samples: Sequence[Sample]) -> None:
        self._processor = model.processor(modality)
        prompts, items = zip(*map(generated, samples), strict=True)
        self._machine = SVC(C=10.0).fit(np.stack([self._real(item.value) for item in items]), prompts)

    @staticmethod
    def of(model: TrainedModel, samples: Sequence[Sample]) -> Judge:
        """Make the judge of the modality that the samples generate."""
        return Judge(model, generated(samples[0])[1].modality, samples)

    def read(self, artefacts: Sequence[Any]) -> np.ndarray:
        """Return the classes of made pictures [N]."""
        classes: np.ndarray = self._machine.predict(np.stack([features(one) for one in artefacts]))
        return classes

    def read_real(self, values: Sequence[object]) -> np.ndarray:
        """Return the classes of raw pictures [N]."""
        classes: np.ndarray = self._machine.predict(np.stack([self._real(value) for value in values]))
        return classes

    def _real(self, value: object) -> np.ndarray:
        return features(self._processor.restore(self._processor(value)["pixels"]))


def samples_of(source: Source) -> list[Sample]:
    """Return every sample of a source."""
    return [source[index] for index in range(len(source))]


def features(artefact: Any) -> np.ndarray:
    """Return what the classifier sees of a picture [F]: grey values from 0 to 1."""
    return np.asarray(artefact.convert("L"), dtype=np.float32).reshape(-1) / 255
