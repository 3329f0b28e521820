"""A run file resolved against the catalogue: every part with its spec, its options and its facts.

Made by `core.wiring.resolve`; read by composition, by `explain`, and by data workers. Holds no
weights and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from janus_plugins.core.errors import PluginError, RunFileError
from janus_plugins.core.facts import (
    AdapterFacts,
    CallbackFacts,
    EvaluationFacts,
    GenerationFacts,
    HeadFacts,
    LanguageModelFacts,
    SourceFacts,
    UnderstandingFacts,
)
from janus_plugins.core.owner import Owner
from janus_plugins.core.schema import DataBlock, EvaluationBlock, ParallelBlock, RunConfig
from janus_plugins.core.specs import ComponentConfig, ComponentSpec


def plain_options(config: ComponentConfig) -> dict[str, Any]:
    """Return options as plain data that the same class reads again; none where they are no plain data.

    They are called by their fields' names, which the class reads where it validates by name.
    Equal options give equal data in every process: sets are sorted, whose order is another in each.
    """
    how: dict[str, Any] = {"by_alias": False, "round_trip": True}
    try:
        plain: dict[str, Any] = _in_order(config.model_dump(mode="json", **how), config.model_dump(**how))
    except ValueError:  # what pydantic raises, and text that is none
        return {}
    return plain


def _in_order(plain: Any, value: Any) -> Any:
    """Return the plain data of a value with its sets sorted, where it is laid out as the value is."""
    if isinstance(plain, list) and isinstance(value, (set, frozenset)):
        return sorted(plain, key=repr)
    if isinstance(plain, dict) and isinstance(value, dict) and len(plain) == len(value):
        pairs = zip(plain.items(), value.values(), strict=True)
        return {key: _in_order(one, of) for (key, one), of in pairs}
    if isinstance(plain, list) and isinstance(value, (list, tuple)) and len(plain) == len(value):
        return [_in_order(one, of) for one, of in zip(plain, value, strict=True)]
    return plain


@dataclass(frozen=True)
class Part:
    """Hold one resolved component of a model or of its data.

    Attributes:
        address: "language_model", "understanding.image.encoder", "data.captions" ...
        spec: the component's declaration.
        owner: who offers it.
        config: its validated options.
        facts: what `config.facts(...)` answered.
        weights: published weights to start from, or None.
    """

    address: str
    spec: ComponentSpec
    owner: Owner
    config: ComponentConfig
    facts: Any
    weights: str | None = None


@dataclass(frozen=True)
class UnderstandingPlan:
    """Hold the understanding path of one modality.

    Attributes:
        encoder: its encoder; where that is shared, the generation encoder's part with the facts of its
            features.
        adapter: its adapter.
        shares: the modality whose generation encoder serves this path too, or None.
    """

    encoder: Part
    adapter: Part
    shares: str | None = None

    @property
    def facts(self) -> UnderstandingFacts:
        """Return the encoder's facts."""
        return self.encoder.facts  # type: ignore[no-any-return]

    def tokens(self, encoder_tokens: int) -> int:
        """Answer how many slots an item takes when the encoder makes `encoder_tokens` of it."""
        return self.adapter.config.output_tokens(encoder_tokens)


@dataclass(frozen=True)
class GenerationPlan:
    """Hold the generation path of one modality.

    Attributes:
        encoder, adapter, head: its components.
        parallel: how many codes are predicted at once; None for one.
    """

    encoder: Part
    adapter: Part
    head: Part
    parallel: ParallelBlock | None = None

    @property
    def facts(self) -> GenerationFacts:
        """Return the encoder's facts."""
        return self.encoder.facts  # type: ignore[no-any-return]

    @property
    def num_starts(self) -> int:
        """Return the learnt embeddings that complete the block before the first one."""
        return self.parallel.block - 1 if self.parallel else 0

    @property
    def slots(self) -> int:
        """Return the slots that an item takes in the language model."""
        return self.facts.tokens + self.num_starts


@dataclass(frozen=True)
class ModelPlan:
    """Hold every part of a model."""

    language_model: Part
    text_head: Part
    understanding: dict[str, UnderstandingPlan]
    generation: dict[str, GenerationPlan]

    @property
    def facts(self) -> LanguageModelFacts:
        """Return the language model's facts."""
        return self.language_model.facts  # type: ignore[no-any-return]

    def parts(self) -> Iterator[Part]:
        """Yield every part once, the language model first."""
        yield self.language_model
        yield self.text_head
        for path in self.understanding.values():
            yield from (path.adapter,) if path.shares else (path.encoder, path.adapter)
        for made in self.generation.values():
            yield from (made.encoder, made.adapter, made.head)

    def starts(self) -> dict[str, int]:
        """Return the address of each path's start embeddings, and how many it has, where it has any."""
        return {
            f"generation.{name}.starts": made.num_starts
            for name, made in self.generation.items()
            if made.num_starts
        }

    def addresses(self) -> tuple[str, ...]:
        """Return the address of every part, and of start embeddings."""
        return (*(part.address for part in self.parts()), *self.starts())


@dataclass(frozen=True)
class DataPlan:
    """Hold one resolved data source."""

    block: DataBlock
    part: Part

    @property
    def facts(self) -> SourceFacts:
        """Return the source's facts."""
        return self.part.facts  # type: ignore[no-any-return]


@dataclass(frozen=True)
class EvaluationPlan:
    """Hold one resolved evaluation task."""

    block: EvaluationBlock
    part: Part

    @property
    def facts(self) -> EvaluationFacts:
        """Return the task's facts."""
        return self.part.facts  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RunPlan:
    """Hold a whole run: the validated file and everything it names.

    Attributes:
        run: the file.
        model: the model's parts.
        data: sources by name; for a model that is only used, those that can be had.
        evaluation: evaluation tasks by name.
        callbacks: training callbacks by label; none where a trained model is only used.
        missing: for a model that is only used, why an evaluation task, or its data, cannot be had, by name.
    """

    run: RunConfig
    model: ModelPlan
    data: dict[str, DataPlan]
    evaluation: dict[str, EvaluationPlan] = field(default_factory=dict)
    callbacks: dict[str, Part] = field(default_factory=dict)
    missing: Mapping[str, PluginError | RunFileError] = field(default_factory=dict)

    def extras(self) -> Iterator[Part]:
        """Yield what is resolved beside the model's parts: sources, evaluation tasks, callbacks."""
        yield from (data.part for data in self.data.values())
        yield from (test.part for test in self.evaluation.values())
        yield from self.callbacks.values()


__all__ = [
    "AdapterFacts",
    "CallbackFacts",
    "DataPlan",
    "EvaluationFacts",
    "EvaluationPlan",
    "GenerationPlan",
    "HeadFacts",
    "ModelPlan",
    "Owner",
    "Part",
    "RunPlan",
    "UnderstandingPlan",
    "plain_options",
]
