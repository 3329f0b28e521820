"""Toy doubles of the unified model and of its loader: real batches, real gradients, a few hundred weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from janus_plugins.core.contracts import Packed
from janus_plugins.core.schema import EngineBlock, Schedule, StageBlock
from janus_plugins.sequence.batch import Batch, ItemBatch
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.world import World

WIDTH, VOCAB, CODES, SLOTS = 8, 11, 7, 12
STEEP = 1e3


class ToyLosses(NamedTuple):
    loss: Tensor
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]


class ToyPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 6)
        self.adapter = nn.Linear(6, WIDTH)

    def forward(self, items: Tensor) -> Tensor:
        dtype = self.encoder.weight.dtype
        return self.adapter(torch.tanh(self.encoder(items.to(dtype))))


class ToyLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.block = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.text_head = nn.Linear(WIDTH, VOCAB)

    def forward(self, embeds: Tensor) -> Tensor:
        embeds = embeds + 0.2 * embeds.cumsum(0)  # every slot sees those before it
        return self.norm(embeds + self.block(embeds))


class ToyGeneration(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.head = nn.Linear(WIDTH, CODES)

    def forward(self, items: Tensor) -> Tensor:
        return self.encoder(items.to(self.encoder.weight.dtype))


class ToyModel(nn.Module):
    """A language model, one understanding path and one generation path, with the real part addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.language_model = ToyLanguageModel()
        self.understanding = nn.ModuleDict({"image": ToyPath()})
        self.generation = nn.ModuleDict({"image": ToyGeneration()})
        self.register_buffer("steps_seen", torch.zeros(()))

    def forward(self, batch: Batch, scale: Mapping[str, float], reconstruct: str | None = None) -> ToyLosses:
        made = batch.generation["image"]
        if reconstruct is not None:
            return self._reconstruct(made, scale)
        embeds = self.language_model.embedding(batch.ids.view(-1))
        seen = batch.understanding["image"]
        values = self.understanding["image"](seen.items["pixels"]).to(embeds.dtype)
        embeds = embeds + values.sum() * 0 if seen.absent else embeds.index_copy(0, seen.at, values)
        hidden = self.language_model(embeds)
        text = self._answer(self.language_model.text_head, hidden, batch.text_at, batch.text_targets)
        at, codes = made.predict_at, made.items["codes"]
        image = self._answer(self.generation["image"].head, hidden, at, codes[: len(at)])
        loss = text * scale["text"] + image * scale["generation.image"]
        if seen.items["pixels"].max() > STEEP:  # a finite loss whose gradient is not
            loss = loss + torch.sqrt(text * 0)
        sums = {"text.text": text.detach(), "generation.image": image.detach()}
        counts = {"text.text": len(batch.text_at), "generation.image": len(at)}
        return ToyLosses(loss, sums, {name: torch.tensor(float(count)) for name, count in counts.items()})

    def _answer(self, head: nn.Module, hidden: Tensor, at: Tensor, targets: Tensor) -> Tensor:
        if not at.numel():
            return head(hidden[:1]).sum() * 0
        return nn.functional.cross_entropy(head(hidden[at]).float(), targets, reduction="sum")

    def _reconstruct(self, made: ItemBatch, scale: Mapping[str, float]) -> ToyLosses:
        pixels = made.items["pixels"]
        number = 0 if made.absent else len(made.lengths)
        error = (self.generation["image"](pixels) - pixels).float().pow(2).mean()
        loss = error * (number * scale["reconstruct"])
        return ToyLosses(
            loss,
            {"reconstruct.loss": error.detach() * number},
            {"reconstruct.loss": torch.tensor(float(number))},
        )


def toy_batch(seed: int, *, text: bool = True, seen: int = 2, made: int = 2) -> Batch:
    """Make a batch of one row whose content hangs on the seed alone."""
    draw = torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    ids, targets = whole(VOCAB, 1, SLOTS), whole(VOCAB, 6)
    pixels, codes = torch.randn(max(seen, 1), 4, generator=draw), whole(CODES, max(made, 1))
    at = torch.arange(2, 8) if text else torch.arange(0)
    every = torch.arange(SLOTS)
    return Batch(
        ids=ids,
        positions=every[None],
        packed=Packed((every[None],), torch.tensor([0, SLOTS], dtype=torch.int32), SLOTS),
        text_at=at,
        text_targets=targets[: len(at)],
        text_tasks=torch.zeros_like(at),
        understanding={
            "image": ItemBatch({"pixels": pixels}, (1,) * seen, torch.arange(seen), absent=not seen)
        },
        generation={
            "image": ItemBatch(
                {"pixels": pixels * 0.5, "codes": codes},
                (1,) * made,
                torch.arange(8, 8 + made),
                predict_at=torch.arange(8, 8 + made),
                targets=torch.arange(made),
                absent=not made,
            )
        },
        tasks=("text",),
        num_samples={"text": 1},
        num_tokens=SLOTS,
    )


@dataclass(frozen=True)
class ToyStepBatch:
    step: int
    micro: tuple[Batch, ...]
    bad: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    slots: int = SLOTS
    tokens: int = SLOTS


@dataclass(frozen=True)
class ToyBadRecord:
    key: str
    reason: str


class ToyLoader:
    """Yield the batches of a stage for ever, from the state's next step."""

    def __init__(
        self, stage: StageBlock, world: World, state: Mapping[str, Any] | None, recipe: ToyRecipe
    ) -> None:
        self._stage, self._world, self._recipe = stage, world, recipe
        self._next = int(state["next"]) if state else 0

    def __iter__(self) -> Iterator[ToyStepBatch]:
        offset = 1000 * (1 + sum(map(ord, self._stage.name)))
        for step in range(self._next, 10**9):
            torch.rand(3)  # a loader that disturbs the random state must not change the training
            micro = tuple(
                self._recipe.batch(offset, step, self._world, number)
                for number in range(self._recipe.accumulate)
            )
            yield ToyStepBatch(step, micro, self._recipe.bad(step), {"next": step + 1})


class ToyRecipe:
    """Say which batches a toy run sees; tests replace the methods they care about."""

    accumulate = 1

    def batch(self, offset: int, step: int, world: World, number: int) -> Batch:
        return toy_batch(offset + (step * world.size + world.rank) * self.accumulate + number)

    def bad(self, step: int) -> tuple[Any, ...]:
        return ()


def toy_model(seed: int = 3) -> ToyModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ToyModel()


def toy_stage(name: str = "one", **changes: Any) -> StageBlock:
    values: dict[str, Any] = {
        "name": name,
        "learn": {"language_model": 1e-2, "understanding.image.adapter": 2e-2, "generation.image.head": 1e-2},
        "steps": 6,
        "batch": 4,
        "mix": {"text": 1},
        "schedule": Schedule(type="cosine", warmup=2, floor=0.1),
        "max_length": SLOTS,
    }
    return StageBlock(**{**values, **changes})


def toy_run(
    *stages: StageBlock, data: ToyRecipe | None = None, engine: dict[str, Any] | None = None, **options: Any
) -> Recipe:
    data = data or ToyRecipe()
    block = EngineBlock(**{"accumulate": data.accumulate, **(engine or {})})
    return Recipe(
        stages=stages or (toy_stage(),),
        engine=block,
        seed=5,
        build=lambda weights: toy_model(),
        loader=lambda stage, world, state: ToyLoader(stage, world, state, data),
        **options,
    )


def some_slow(engines: list[dict[str, Any]], *quick: dict[str, Any]) -> list[Any]:
    """Return engine options as a test's parameters, slow but for those named."""

    def named(engine: dict[str, Any]) -> Any:
        label = f"{engine['deepspeed']['zero_optimization']['stage']}-{engine['precision']}"
        return pytest.param(engine, id=label, marks=[] if engine in quick else [pytest.mark.slow])

    return [named(engine) for engine in engines]


def zero(stage: int, precision: str = "fp32", **changes: Any) -> dict[str, Any]:
    """Return engine options for a ZeRO stage."""
    return {"precision": precision, "deepspeed": {"zero_optimization": {"stage": stage}}, **changes}
