"""One sample made ready in a data worker: items processed, tokens laid out.

Knows processors and layout; knows nothing of steps, ranks or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_plugins.core.blame import blamed
from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.errors import BadSample, DataError
from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.plan import DataPlan, GenerationPlan, Part, RunPlan, UnderstandingPlan
from janus_plugins.core.samples import Item, Sample
from janus_plugins.core.schema import StageBlock
from janus_plugins.data.precomputed import open_stores
from janus_plugins.sequence.assemble import PRECOMPUTED, Dummies, Prepared, finite
from janus_plugins.sequence.layout import plan_sample
from janus_plugins.sequence.line import Path, Spelling

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Arrays
    from janus_plugins.sequence.tokenizers import TextTokenizer


@dataclass(frozen=True)
class _Reader:
    """Hold a path's processor and how many slots its items take."""

    processor: Any
    plan: UnderstandingPlan | GenerationPlan

    def entering(self, arrays: Arrays) -> int:
        """Answer how many features, codes or latents the encoder makes of an item."""
        if isinstance(self.plan, GenerationPlan):
            return self.plan.slots
        values = arrays.get(PRECOMPUTED)
        return int(self.processor.num_tokens(arrays)) if values is None else len(values)

    def slots(self, entering: int) -> int:
        """Answer how many slots an item takes in the language model."""
        return entering if isinstance(self.plan, GenerationPlan) else self.plan.tokens(entering)

    def blank(self) -> Arrays:
        """Return what stands in for an answer of the encoder where a batch has none."""
        facts = self.plan.facts
        if isinstance(facts, GenerationFacts) and facts.form == "codes":
            return {PRECOMPUTED: np.zeros(facts.shape, np.int64)}
        return {PRECOMPUTED: np.zeros((facts.tokens or 0, facts.width), np.float32)}


class Preparer:
    """Make samples ready for one stage.

    Args:
        plan: the run.
        tokenizer: the run's tokenizer.
        stage: whose rules of layout apply.
    """

    def __init__(self, plan: RunPlan, tokenizer: TextTokenizer, stage: StageBlock) -> None:
        self._stage = stage
        self._spelling = Spelling.of(plan.run.model, tokenizer)
        self._readers: dict[tuple[Path, str], _Reader] = {}
        for name, shown in plan.model.understanding.items():
            self._readers["understanding", name] = _Reader(_processor(shown.encoder), shown)
        for name, made in plan.model.generation.items():
            self._readers["generation", name] = _Reader(_processor(made.encoder), made)
        self._stores = open_stores(plan, stage)
        self.dummies = self._dummies()

    @property
    def pad(self) -> int:
        """Return the id of padding."""
        return self._spelling.pad

    def prepare(
        self, sample: Sample, data: DataPlan, rng: np.random.Generator, index: int | None = None
    ) -> Prepared:
        """Process a sample's items, or look up what their encoders answered, and lay it out.

        Args:
            sample: what the source yielded; it counts for the task that its data entry says.
            data: the entry.
            rng: the sample's own random numbers.
            index: the sample's index in its source, under which answers are looked up.

        Raises:
            BadSample: it cannot be used.
            DataError: the model has no path for one of its items.
        """
        sample = replace(_checked(sample, data), task=data.block.task)
        items = [part for turn in sample.turns for part in turn.parts if isinstance(part, Item)]
        arrays, entering, counts = [], [], []
        entry = data.part.address.removeprefix("data.")
        for number, item in enumerate(items):
            path: Path = "generation" if item.learn else "understanding"
            reader = self._reader(path, item.modality, sample)
            store = self._stores.get((entry, path, item.modality))
            if store is None or index is None:
                arrays.append(finite(reader.processor(item.value), reader.plan.encoder))
            else:
                arrays.append({PRECOMPUTED: store.get(index, number, sample.key, item.value)})
            entering.append(reader.entering(arrays[-1]))
            counts.append(reader.slots(entering[-1]))
        plan = plan_sample(sample, counts, self._spelling, self._stage, rng)
        return Prepared(plan, tuple(arrays), tuple(entering))

    def items(self, sample: Sample, data: DataPlan, modality: str) -> list[Arrays]:
        """Process a sample's items of one modality for its generation encoder; the rest is ignored.

        Raises:
            BadSample: it cannot be used.
        """
        reader = self._reader("generation", modality, _checked(sample, data))
        parts = [part for turn in sample.turns for part in turn.parts if isinstance(part, Item)]
        values = [part.value for part in parts if part.modality == modality]
        return [finite(reader.processor(value), reader.plan.encoder) for value in values]

    def _reader(self, path: Path, modality: str, sample: Sample) -> _Reader:
        found = self._readers.get((path, modality))
        if found is None:
            raise DataError(
                f"{sample.key} holds an item of {modality!r}, but the model has no {path} path for it; "
                f"add model.{path}.{modality}, or leave that source out"
            )
        return found

    def _dummies(self) -> Dummies:
        shown: dict[str, Arrays] = {}
        made: dict[str, Arrays] = {}
        lengths: dict[tuple[Path, str], int] = {}
        entering: dict[str, int] = {}
        answered = {at[1:] for at in self._stores}
        for (path, modality), reader in self._readers.items():
            with blamed(reader.plan.encoder, "its processor's dummy() and num_tokens()"):
                arrays = reader.blank() if (path, modality) in answered else reader.processor.dummy()
                number = reader.entering(arrays)
            (shown if path == "understanding" else made)[modality] = arrays
            lengths[path, modality] = reader.slots(number)
            if path == "understanding":
                entering[modality] = number
        return Dummies(shown, made, lengths, entering)


def _processor(encoder: Part) -> Any:
    make = load_processor(encoder.spec)
    with blamed(encoder, "its processor"):
        return make(encoder.config)


def _checked(sample: object, data: DataPlan) -> Sample:
    if not isinstance(sample, Sample):
        raise BadSample(f"the source returned {type(sample).__name__}, not a Sample")
    if sample.task not in data.facts.tasks:
        known = ", ".join(sorted(data.facts.tasks))
        raise BadSample(f"{sample.key} serves task {sample.task!r}, but its source declares {known}")
    return sample
