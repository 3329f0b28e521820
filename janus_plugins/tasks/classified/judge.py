"""A classifier of real pictures, that reads made ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.svm import SVC

from janus_plugins.core.errors import BadSample, DataError, JanusPluginsError
from janus_plugins.core.samples import Sample, generated

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Source, TrainedModel


class Judge:
    """Read pictures with an RBF support-vector machine that has seen real ones alone.

    Args:
        model: whose generation path makes the pictures; real ones are shown as its encoder sees them.
        source: real pictures to learn from; the prompt of each is its class. Those that cannot be read are
            passed over, as the model passed them over in training.

    Raises:
        DataError: none can be read.
    """

    def __init__(self, model: TrainedModel, source: Source | Sequence[Sample]) -> None:
        prompts, seen, self._unreadable, problem = [], [], 0, "there is none"
        for index in range(len(source)):
            try:
                prompt, item = generated(source[index])
                self._processor = model.processor(item.modality)
                seen.append(self._real(item.value))
                prompts.append(prompt)
            except Exception as error:
                if isinstance(error, JanusPluginsError) and not isinstance(error, BadSample):
                    raise
                self._unreadable, problem = self._unreadable + 1, str(error)
        if not seen:
            raise DataError(f"no picture to learn from can be read; the last: {problem}")
        self._machine = SVC(C=10.0).fit(np.stack(seen), prompts)

    def passed_over(self) -> dict[str, int]:
        """Return how many pictures could not be read, for a task's details; nothing where all could."""
        return {"unreadable": self._unreadable} if self._unreadable else {}

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
