"""A component inside a tiny model: composed by the ordinary wiring, fed by the ordinary layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from janus_plugins.core.catalogue import Catalogue, CatalogueEntry, load_processor
from janus_plugins.core.errors import DataError
from janus_plugins.core.facts import GenerationFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plan import Owner, RunPlan
from janus_plugins.core.samples import (
    Sample,
    generation_sample,
    question_sample,
    text_sample,
    understanding_sample,
)
from janus_plugins.core.schema import RunConfig, StageBlock, TokenizerBlock
from janus_plugins.core.wiring import resolve
from janus_plugins.data.texts import run_texts
from janus_plugins.model.compose import compose_plan
from janus_plugins.sequence.assemble import Dummies, Prepared, assemble
from janus_plugins.sequence.batch import Batch
from janus_plugins.sequence.layout import plan_sample
from janus_plugins.sequence.line import Spelling
from janus_plugins.sequence.templates import resolve_template, special_tokens
from janus_plugins.sequence.tokenizers import TextTokenizer, build_tokenizer
from janus_plugins.testing.case import OWNER, Case
from janus_plugins.testing.items import vectors
from janus_plugins.testing.partners import PARTNERS, PICTURES

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Arrays
    from janus_plugins.model.unified import UnifiedModel

PARTNER_OWNER = Owner("partners", "0")
WORDS = ("one", "two", "three", "four")
MOST_TEXTS = 2000
STEPS = 12
RATE = 3e-3


class TinyModel:
    """Hold a model composed around one component, and make batches for it.

    Args:
        case: the component.
        stages: rows of a recipe, where one is to be run.
    """

    def __init__(self, case: Case, stages: Sequence[dict[str, Any]] = ()) -> None:
        self.case = case
        self.plan: RunPlan = resolve(run_config(case, stages), partners_and(case))
        self.tokenizer = tiny_tokenizer(self.plan)

    @cached_property
    def model(self) -> UnifiedModel:
        """Return the composed model."""
        return compose_plan(self.plan, self.tokenizer, weights=False)

    @property
    def component(self) -> nn.Module:
        """Return the component inside the model."""
        return self.model.get_submodule(self.case.address)

    def present(self) -> Batch:
        """Make a batch that the component has a part in."""
        return self._batch(self._samples())

    def absent(self) -> Batch:
        """Make a batch without the component's modality; for a text head, without text to learn."""
        if self.case.kind == Kind.HEAD and self.case.path == "text":
            return self._batch(self._made("thing", vectors()))
        return self._batch(list(_texts()))

    def _samples(self) -> list[tuple[Sample, list[Arrays]]]:
        """Return what is learnt, with the arrays of each sample's items."""
        samples = list(_texts())
        for modality in self.plan.model.understanding:
            samples += self._shown(modality, *self._items("understanding", modality))
        for modality in self.plan.model.generation:
            samples += self._made(modality, *self._items("generation", modality))
        return samples

    def _items(self, side: str, modality: str) -> tuple[list[object], list[Arrays] | None]:
        encoder = f"{side}.{modality}.encoder"
        if encoder == self.case.address:
            return list(range(len(self.case.arrays))), self.case.arrays
        return vectors(), None

    def _shown(
        self, modality: str, items: list[object], arrays: list[Arrays] | None
    ) -> Iterator[tuple[Sample, list[Arrays]]]:
        read = arrays or [self._processor("understanding", modality)(item) for item in items]
        for index, array in enumerate(read[: len(WORDS)]):
            sample = understanding_sample(modality, None, "which ?", WORDS[index], f"shown[{index}]")
            yield sample, [array]

    def _made(
        self, modality: str, items: list[object], arrays: list[Arrays] | None = None
    ) -> list[tuple[Sample, list[Arrays]]]:
        read = arrays or [self._processor("generation", modality)(item) for item in items]
        return [
            (generation_sample(WORDS[index], modality, None, f"made[{index}]"), [array])
            for index, array in enumerate(read[: len(WORDS)])
        ]

    def _processor(self, side: str, modality: str) -> Any:
        part = getattr(self.plan.model, side)[modality].encoder
        return load_processor(part.spec)(part.config)

    def _entering(self, side: str, modality: str, arrays: Arrays) -> int:
        path = getattr(self.plan.model, side)[modality]
        if side == "generation":
            return int(path.slots)
        return int(self._processor(side, modality).num_tokens(arrays))

    def _slots(self, side: str, modality: str, entering: int) -> int:
        path = getattr(self.plan.model, side)[modality]
        return entering if side == "generation" else int(path.tokens(entering))

    def _batch(self, samples: Sequence[tuple[Sample, list[Arrays]]]) -> Batch:
        """Lay samples out, two in a row."""
        spelling = Spelling.of(self.plan.run.model, self.tokenizer)
        stage, draw = self._stage(), np.random.default_rng(0)
        prepared = []
        for sample, arrays in samples:
            side = "generation" if sample.task == "generation" else "understanding"
            entering = tuple(self._entering(side, _modality(sample), each) for each in arrays)
            counts = [self._slots(side, _modality(sample), each) for each in entering]
            plan = plan_sample(sample, counts, spelling, stage, draw)
            prepared.append(Prepared(plan, tuple(arrays), entering))
        rows = [prepared[start : start + 2] for start in range(0, len(prepared), 2)]
        return assemble(rows, self._dummies(), spelling.pad)

    def _stage(self) -> StageBlock:
        length = self.plan.model.facts.max_positions
        return StageBlock(
            name="check", learn={"language_model": 1.0}, mix={"text": 1}, steps=1, batch=1, max_length=length
        )

    def _dummies(self) -> Dummies:
        shown = {
            name: self._processor("understanding", name).dummy() for name in self.plan.model.understanding
        }
        made = {name: self._processor("generation", name).dummy() for name in self.plan.model.generation}
        entering = {name: self._entering("understanding", name, each) for name, each in shown.items()}
        lengths: dict[Any, int] = {
            ("understanding", name): self._slots("understanding", name, each)
            for name, each in entering.items()
        }
        lengths |= {
            ("generation", name): self._entering("generation", name, each) for name, each in made.items()
        }
        return Dummies(shown, made, lengths, entering)

    def backward(self, batch: Batch, reconstruct: str | None = None) -> float:
        """Run a batch forwards and backwards; return the loss, a mean over every path's targets."""
        counts = batch.targets(reconstruct)
        scale = {path: 1 / count for path, count in counts.items() if count}
        loss: Tensor = self.model(batch.to(self.model.device), scale, reconstruct).loss
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def train(self, batch: Batch, steps: int = STEPS, reconstruct: str | None = None) -> list[float]:
        """Take optimiser steps on one batch; return the loss of each."""
        self.model.train()
        learnt = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=RATE)
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(steps):
                optimizer.zero_grad()
                losses.append(self.backward(batch, reconstruct))
                optimizer.step()
        return losses


def _partner(**options: Any) -> dict[str, Any]:
    return {"use": f"{PARTNER_OWNER.distribution}/partner", "options": options}


def _checked(case: Case) -> dict[str, Any]:
    return {"use": f"{OWNER.distribution}/{case.spec.name}", "options": dict(case.options)}


def partners_and(case: Case) -> Catalogue:
    """Return a catalogue of the partners and the component under test, and nothing else."""
    entries = [CatalogueEntry(spec, PARTNER_OWNER) for spec in (*PARTNERS, PICTURES)]
    return Catalogue([*entries, CatalogueEntry(case.spec, OWNER)])


def run_config(case: Case, stages: Sequence[dict[str, Any]] = ()) -> RunConfig:
    """Write the run file of a tiny model around a component."""
    kind = case.kind
    room = 256 + 2 * _most_tokens(case)
    words = 512 if kind == Kind.SOURCE else 64
    partner = _partner(max_positions=room, vocab_size=words)
    language = _checked(case) if kind == Kind.LANGUAGE_MODEL else partner
    checks_text = kind == Kind.HEAD and case.path == "text"
    model: dict[str, Any] = {
        "language_model": {
            **language,
            "tokenizer": {"type": "bytes"},
            "template": "plain",
            "head": _checked(case) if checks_text else _partner(),
        },
        "understanding": {name: _understanding(case, name) for name in _modalities(case, "understanding")},
        "generation": {name: _generation(case, name) for name in _modalities(case, "generation")},
    }
    data = {"checked": {**_checked(case), "task": _task(case)}} if kind == Kind.SOURCE else {}
    return RunConfig.model_validate({"name": "check", "model": model, "data": data, "stages": list(stages)})


def _task(case: Case) -> str:
    return str(min(case.facts.tasks))


def _modalities(case: Case, side: str) -> list[str]:
    """Name the modalities that the model needs on one side."""
    if case.kind == Kind.SOURCE:
        return sorted(getattr(case.facts, side))
    if case.kind == Kind.EVALUATION_TASK:
        return ["image"]
    if case.kind in (Kind.LANGUAGE_MODEL, Kind.CALLBACK):
        return ["thing"]
    if case.kind == Kind.HEAD and case.path == "text":
        return ["thing"] if side == "generation" else []
    return [case.modality] if case.address.partition(".")[0] == side else []


def _understanding(case: Case, name: str) -> dict[str, Any]:
    beside = case.neighbour
    encoder = _partner(modality=name)
    if isinstance(beside, UnderstandingFacts):
        encoder = _partner(modality=name, tokens=beside.max_tokens, width=beside.width)
    return {
        "encoder": _checked(case) if case.kind == Kind.UNDERSTANDING_ENCODER else encoder,
        "adapter": _checked(case) if case.kind == Kind.ADAPTER else _partner(),
    }


def _generation(case: Case, name: str) -> dict[str, Any]:
    beside = case.neighbour
    encoder = _partner(modality=name)
    if case.kind == Kind.EVALUATION_TASK:
        encoder["use"] = f"{PARTNER_OWNER.distribution}/{PICTURES.name}"
    if isinstance(beside, GenerationFacts):
        size = {"codebook_size": beside.codebook_size, "codebooks": beside.codebooks}
        encoder = _partner(modality=name, form=beside.form, grid=beside.grid, width=beside.width, **size)
    return {
        "encoder": _checked(case) if case.kind == Kind.GENERATION_ENCODER else encoder,
        "adapter": _checked(case) if case.kind == Kind.ADAPTER else _partner(),
        "head": _checked(case) if case.kind == Kind.HEAD and case.path != "text" else _partner(),
    }


def _most_tokens(case: Case) -> int:
    found = [case.neighbour, case.facts]
    counts = [getattr(facts, "max_tokens", None) or getattr(facts, "tokens", None) or 0 for facts in found]
    return int(max(counts))


def tiny_tokenizer(plan: RunPlan) -> TextTokenizer:
    """Build a tokenizer of the words that the samples of a check hold, and of the run's own texts."""
    template = resolve_template(plan.run.model.language_model.template)
    texts = [*template.strings(), *WORDS, "which ?", *_own_texts(plan)]
    block = TokenizerBlock(type="trained", level="word", vocab_size=plan.model.facts.vocab_size)
    return build_tokenizer(block, special_tokens(plan.run.model), texts)


def _own_texts(plan: RunPlan) -> list[str]:
    try:
        return list(islice(run_texts(plan), MOST_TEXTS))
    except DataError:  # a source read in order that offers no texts
        return []


def _texts() -> Iterator[tuple[Sample, list[Arrays]]]:
    yield text_sample(" ".join(WORDS), "text[0]"), []
    yield question_sample("which ?", " ".join(reversed(WORDS)), "text[1]"), []


def _modality(sample: Sample) -> str:
    found = [part.modality for turn in sample.turns for part in turn.parts if not isinstance(part, str)]
    return found[0] if found else ""
