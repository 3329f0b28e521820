"""Checkpoints of a run: what is saved, which one to go on from, and how it is read.

Three kinds lie in `OUT/checkpoints/`:

- `start`: what the run began with: its tokenizer and, where the engine rounds them or they are another
  model's, the frozen weights in full.
- `step_N`: DeepSpeed's state in the middle of a stage, the random state and the data position of every rank.
- `stage_K`: the model's full weights at the end of stage K; the next stage starts from it.

What lies further than the checkpoint that a run goes on from, damaged or without the end of a stage that it
builds on, is set aside as `NAME.unusable`.

DeepSpeed reads its files with a loader that runs any code in them. Here the loader is held to plain weights,
so that a foreign file is refused instead of run.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.peers import is_lost_peer
from janus_plugins.model.native import load_tensors, save_tensors, weight_files
from janus_plugins.sequence.tokenizers import (
    CONFIG_FILE as TOKENIZER_CONFIG,
    FILE as TOKENIZER_FILE,
    TextTokenizer,
    load_tokenizer,
)
from janus_plugins.training import publish, random_state
from janus_plugins.training.engine import Engine
from janus_plugins.training.plain_weights import plain_weights_only
from janus_plugins.training.world import World

_ENGINE = "deepspeed"
"""DeepSpeed's tag, and so the folder of its files inside a checkpoint."""

START = "start"

UNUSABLE = ".unusable"

_NAME = re.compile(r"(step|stage)_(\d+)")


@dataclass(frozen=True)
class Position:
    """Say how far a run has come.

    Attributes:
        stage: index of the stage in the run file.
        step: optimiser steps done in that stage.
        total: optimiser steps done in the whole run.
    """

    stage: int
    step: int
    total: int


@dataclass(frozen=True)
class Found:
    """Hold a verified checkpoint: its folder's name, its kind, and what its manifest records."""

    name: str
    kind: str
    position: Position
    manifest: dict[str, Any]

    @property
    def begun(self) -> int:
        """Return the index of the stage that its run began with."""
        return int(self.manifest.get("begun", 0))


class Checkpoints:
    """Keep the checkpoints of one run.

    Args:
        root: their folder.
        world: who we are.
        identity: what a resumed run must share.
        keep: how many of those in the middle of a stage stay.
        check: called on the main rank before anything is written; raises where the folder is not ours.

    Attributes:
        root: their folder.
        begun: index of the stage that the run began with.
    """

    def __init__(
        self,
        root: Path,
        world: World,
        identity: Mapping[str, Any],
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.root = root
        self._check = check
        self.begun = 0
        self._world, self._identity, self._keep = world, identity, keep

    def save_start(self, weights: Mapping[str, Tensor], others: Callable[[Path], None] | None) -> None:
        """Publish what the run begins with. Collective.

        Args:
            weights: frozen weights that no later checkpoint holds in full.
            others: writes what else there is into a folder.
        """

        def write(folder: Path) -> None:
            if weights and self._world.is_main:
                save_tensors(weights, folder)
            if others is not None and self._world.is_main:
                others(folder)

        if weights or others is not None:
            position = Position(self.begun, 0, 0)
            self._publish(START, write, self._facts(START, position, {}))
        else:
            self._world.from_main(lambda: publish.remove(self.root / START))  # of a beginning that died

    def load_start(self, model: nn.Module) -> None:
        """Give a fresh model the frozen weights that the run began with, where they were kept.

        Raises:
            CheckpointError: they are not those of this model.
        """
        folder = self.root / START
        if folder.is_dir() and weight_files(folder):
            load_tensors(model, folder, partly=True)

    def save_step(
        self, position: Position, engine: Engine, loader_state: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> Path:
        """Publish a checkpoint in the middle of a stage and return its folder. Collective."""
        rank, name = self._world.rank, f"step_{position.total}"

        def write(folder: Path) -> None:
            engine.deepspeed.save_checkpoint(str(folder), tag=_ENGINE, save_latest=False)
            random_state.save_state(folder / f"random_rank_{rank}.safetensors")
            text = json.dumps({"loader": loader_state})
            (folder / f"rank_{rank}.json").write_text(text, encoding="utf-8")

        self._publish(name, write, self._facts("step", position, facts))
        self._world.from_main(self._prune)
        return self.root / name

    def save_stage(self, position: Position, model: nn.Module | None, facts: Mapping[str, Any]) -> Path:
        """Publish the full weights at the end of a stage and return the folder. Collective.

        The main rank gives the model.
        """

        def write(folder: Path) -> None:
            if model is not None:
                save_tensors(model.state_dict(), folder)

        name = f"stage_{position.stage}"
        self._publish(name, write, self._facts("stage", position, facts))
        return self.root / name

    def _publish(self, name: str, write: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
        self._world.from_main(self._check)
        publish.publish(self._world, self.root, name, write, facts)

    def _facts(self, kind: str, position: Position, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "kind": kind,
            "position": asdict(position),
            "begun": self.begun,
            "start": (self.root / START).is_dir(),
            "world_size": self._world.size,
            "identity": dict(self._identity),
            **facts,
        }

    def _prune(self) -> None:
        steps = sorted(self._numbered("step"), reverse=True)
        for number in steps[self._keep :]:
            publish.remove(self.root / f"step_{number}")

    def _numbered(self, kind: str) -> list[int]:
        matches = [_NAME.fullmatch(path.name) for path in self.root.glob(f"{kind}_*")]
        return [int(match[2]) for match in matches if match]

    def stages(self) -> list[int]:
        """Return the indices of the stages whose end is saved (not verified)."""
        return sorted(self._numbered("stage"))

    def started(self) -> list[str]:
        """Return the names of every checkpoint in the folder."""
        return [f"{kind}_{number}" for kind in ("stage", "step") for number in self._numbered(kind)]

    def set_aside(self, found: Found, warn: Callable[[str], None]) -> None:
        """Rename what lies further than the checkpoint to go on from, so that it does not count as newer."""
        readable = {each.name: each for each in self._readable([])}
        for name in self.started():
            if name not in readable or _progress(readable[name]) > _progress(found):
                aside = _free(self.root / f"{name}{UNUSABLE}")
                try:
                    (self.root / name).rename(aside)
                except OSError as error:
                    raise CheckpointError(f"{self.root / name} cannot be set aside: {error}") from error
                warn(f"warning: {name} cannot be gone on from; it is set aside as {aside.name}")

    def find(self, warn: Any, only_stage: int | None = None) -> Found:
        """Return the furthest checkpoint that verifies, naming each damaged one through `warn`.

        A checkpoint in the middle of a stage counts only if the end of the stage before it verifies too.

        Args:
            warn: called with a line of text.
            only_stage: look no further than checkpoints of this stage and the end of the one before.

        Raises:
            CheckpointError: there is none, or none verifies.
        """
        problems: list[str] = []
        for found in sorted(self._readable(problems), key=_progress, reverse=True):
            if only_stage is not None and not _belongs(found, only_stage):
                continue
            try:
                self._verify(found)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                warn(f"warning: skipped a damaged checkpoint: {problem}")
            return found
        listed = "".join(f"\n  {problem}" for problem in problems) or "\n  there is no checkpoint"
        raise CheckpointError(
            f"nothing to resume from in {self.root}:{listed}\nstart anew without --resume, in another --out"
        )

    def _readable(self, problems: list[str]) -> Iterator[Found]:
        for name in self.started():
            try:
                manifest = publish.read_manifest(self.root / name)
                yield Found(name, manifest["kind"], Position(**manifest["position"]), manifest)
            except (CheckpointError, KeyError, TypeError) as error:
                problems.append(str(error) if isinstance(error, CheckpointError) else f"{name}: no {error}")

    def _verify(self, found: Found) -> None:
        publish.verify(self.root / found.name, found.manifest)
        if found.manifest.get("start") and not (self.root / START).is_dir():
            raise CheckpointError(
                f"{found.name} builds on {START} (the tokenizer and frozen weights that the run began with), "
                f"which is gone from {self.root}; put it back, or copy it there beside {found.name}"
            )
        before = self._before(found)
        if before is not None:
            try:
                publish.verify(before, publish.read_manifest(before))
            except CheckpointError as error:
                raise CheckpointError(f"{found.name} builds on {before.name}: {error}") from error

    def _before(self, found: Found) -> Path | None:
        """Return the checkpoint that one in the middle of a stage builds on."""
        if found.kind != "step":
            return None
        if found.position.stage > found.begun:
            return self.root / f"stage_{found.position.stage - 1}"
        return self.root / START if (self.root / START).exists() else None

    def load_stage(self, stage: int, model: nn.Module) -> None:
        """Load the weights at the end of a stage (verified by `find`, or just saved) into a fresh model.

        Raises:
            CheckpointError: they do not fit the model.
        """
        with torch.no_grad():
            load_tensors(model, self.root / f"stage_{stage}")

    def load_step(self, found: Found, engine: Engine) -> Mapping[str, Any]:
        """Load a checkpoint into a fresh engine; return the data loader's state of this rank.

        Random numbers go on where they were, so call this last before the next step.

        Raises:
            CheckpointError: it was made by another number of ranks, or its files are not plain weights.
        """
        made_by, size = found.manifest["world_size"], self._world.size
        if made_by != size:
            raise CheckpointError(
                f"{self.root / found.name} was saved by {made_by} ranks, this run has {size}; start "
                f"{made_by} ranks again, or move {found.name} away to go on from the last end of a stage"
            )
        folder, rank = self.root / found.name, self._world.rank
        try:
            with plain_weights_only():
                loaded, _ = engine.deepspeed.load_checkpoint(str(folder), tag=_ENGINE)
        except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            if is_lost_peer(error):
                raise
            raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
        if loaded is None:
            raise CheckpointError(f"{folder} holds no model state that DeepSpeed knows")
        state: dict[str, Any] = json.loads((folder / f"rank_{rank}.json").read_text(encoding="utf-8"))
        random_state.load_state(folder / f"random_rank_{rank}.safetensors")
        return state["loader"]  # type: ignore[no-any-return]


def begun_tokenizer(root: Path) -> TextTokenizer | None:
    """Return the tokenizer that a run was begun with, or None where it kept none.

    Raises:
        CheckpointError: it is damaged.
    """
    folder = root / START
    if not folder.is_dir():
        return None
    files = _files(folder)
    if TOKENIZER_FILE not in files:
        return None
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG):
        publish.verify_file(folder / name, files.get(name))
    return load_tokenizer(folder)


def keeps_weights(root: Path) -> bool:
    """Answer whether a run keeps the frozen weights that it began with (not verified).

    Raises:
        CheckpointError: what it began with is damaged.
    """
    folder = root / START
    return folder.is_dir() and any(name.endswith(".safetensors") for name in _files(folder))


def _files(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = publish.read_manifest(folder)["files"]
    return files


def _free(path: Path) -> Path:
    """Return the path, or the first with a number behind it that is not taken."""
    taken = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], taken) if not each.exists())


def _progress(found: Found) -> tuple[int, int, int]:
    """Order checkpoints by how far they are; the end of a stage is further than its last step."""
    return found.position.stage, int(found.kind == "stage"), found.position.step


def _belongs(found: Found, stage: int) -> bool:
    return found.position.stage == stage or (found.kind == "stage" and found.position.stage == stage - 1)
