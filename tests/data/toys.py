"""Toy sources and processors, and a run plan made of them by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from janus_plugins.core.errors import BadSample
from janus_plugins.core.facts import GenerationFacts, LanguageModelFacts, SourceFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plan import (
    DataPlan,
    GenerationPlan,
    ModelPlan,
    Owner,
    Part,
    RunPlan,
    UnderstandingPlan,
)
from janus_plugins.core.samples import Sample, generation_sample, text_sample, understanding_sample
from janus_plugins.core.schema import RunConfig, StageBlock
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import TextTokenizer, build_tokenizer

OWNER = Owner("toys", "1")
CODES = 4


class Toy(ComponentConfig):
    """Hold the options of every toy."""

    task: str = "text"
    size: int = 10
    broken: tuple[int, ...] = ()
    hangs: bool = False

    def output_tokens(self, tokens: int) -> int:
        return tokens


class WaveProcessor:
    """Read a list of numbers; the encoder makes one token of two."""

    suffix = ".txt"

    def __init__(self, config: Toy) -> None:
        self.config = config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        if not isinstance(value, list):
            raise BadSample(f"a wave must be a list, not {type(value).__name__}")
        return {"wave": np.array(value, dtype=np.float32)}

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        return len(arrays["wave"]) // 2

    def dummy(self) -> dict[str, np.ndarray]:
        return {"wave": np.zeros(2, np.float32)}


class FixedProcessor(WaveProcessor):
    """Read the first four numbers."""

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        return {"wave": super().__call__(value)["wave"][:4]}

    def dummy(self) -> dict[str, np.ndarray]:
        return {"wave": np.zeros(4, np.float32)}


class Numbers:
    """Make samples whose content is their index."""

    def __init__(self, config: Toy, facts: SourceFacts) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.size

    def __getitem__(self, index: int) -> Sample:
        if self.config.hangs:
            time.sleep(60)
        if index in self.config.broken:
            raise OSError(f"cannot read {index}")
        return self.make(index)

    def make(self, index: int) -> Sample:
        key, wave = f"{self.config.task}-{index}", [float(index)] * (4 + 2 * (index % 3))
        if self.config.task == "text":
            return text_sample(f"text {index}", key)
        if self.config.task == "understanding":
            return understanding_sample("wave", wave, "What?", f"wave {index}", key)
        return generation_sample(f"draw {index}", "wave", wave, key)


class StreamingNumbers(Numbers):
    """Yield the same samples in order, for ever."""

    def __len__(self) -> int:
        raise TypeError("a stream has no length")

    def rows(self, state: Mapping[str, Any] | None) -> Iterator[tuple[int, dict[str, Any]]]:
        at = 0 if state is None else state["at"]
        while True:
            yield at % self.config.size, {"at": at + 1}
            at += 1

    def sample(self, row: int, index: int) -> Sample:
        return Numbers.__getitem__(self, row)


def part(kind: Kind, name: str, target: str, facts: Any, processor: str | None = None, **rest: Any) -> Part:
    spec = ComponentSpec(
        kind=kind,
        name=name,
        config=Toy,
        factory=f"{__name__}:{target}",
        contract=CONTRACT_VERSION,
        processor=None if processor is None else f"{__name__}:{processor}",
    )
    return Part(name, spec, OWNER, Toy(**rest), facts)


def model_plan() -> ModelPlan:
    shown = UnderstandingFacts("wave", width=1, tokens=None, max_tokens=8)
    made = GenerationFacts("wave", "codes", tokens=CODES, width=1, codebook_size=8, grid=(CODES,))
    adapter = part(Kind.ADAPTER, "adapter", "Numbers", None)
    head = part(Kind.HEAD, "head", "Numbers", None)
    reads = part(Kind.UNDERSTANDING_ENCODER, "reads", "Numbers", shown, "WaveProcessor")
    makes = part(Kind.GENERATION_ENCODER, "makes", "Numbers", made, "FixedProcessor")
    language = LanguageModelFacts(8, 300, 512, 1, 1, 1)
    return ModelPlan(
        part(Kind.LANGUAGE_MODEL, "llm", "Numbers", language),
        head,
        {"wave": UnderstandingPlan(reads, adapter)},
        {"wave": GenerationPlan(makes, adapter, head)},
    )


def toy_plan(
    sources: Mapping[str, Mapping[str, Any]],
    stage: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
) -> RunPlan:
    """Make a run of one stage; a source's options are Toy's, plus `split` and `streaming`."""
    path = {"encoder": {"use": "toy"}, "adapter": {"use": "toy"}}
    run = RunConfig.model_validate(
        {
            "model": {
                "language_model": {"use": "toy", "tokenizer": {"type": "bytes"}},
                "understanding": {"wave": path},
                "generation": {"wave": {**path, "head": {"use": "toy"}}},
            },
            "data": {
                name: {"use": "toy", "task": options["task"], "split": options.get("split", "train")}
                for name, options in sources.items()
            },
            "stages": [{**STAGE, **(stage or {})}],
            "engine": dict(engine or {}),
        }
    )
    return RunPlan(run, model_plan(), {name: _data(run, name, options) for name, options in sources.items()})


STAGE = {
    "name": "stage",
    "learn": {"head": 1e-3},
    "steps": 4,
    "batch": 6,
    "mix": {"text": 1},
    "max_length": 96,
}


def _data(run: RunConfig, name: str, options: Mapping[str, Any]) -> DataPlan:
    task = options["task"]
    paths = {task: frozenset({"wave"})} if task in ("understanding", "generation") else {}
    target = "StreamingNumbers" if options.get("streaming") else "Numbers"
    kept = {key: value for key, value in options.items() if key not in ("split", "streaming")}
    facts = SourceFacts(tasks=frozenset({task}), **paths)
    return DataPlan(run.data[name], part(Kind.SOURCE, name, target, facts, **kept))


def toy_tokenizer(plan: RunPlan) -> TextTokenizer:
    return build_tokenizer(plan.run.model.language_model.tokenizer, special_tokens(plan.run.model))


def only_stage(plan: RunPlan) -> StageBlock:
    return plan.run.stages[0]
