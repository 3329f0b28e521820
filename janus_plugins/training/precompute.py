"""Write frozen encoders' answers once, and refuse them when the encoder is another one.

Codes, latents and features are computed as training would compute them: in evaluation mode, in the run's
precision. A part file is written under another name and then renamed, so that a broken-off run goes on
where it stopped; parts are dealt out to the ranks.
"""

from __future__ import annotations

import atexit
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.errors import DataError, RunFileError
from janus_plugins.core.outputs import make_folder
from janus_plugins.core.plan import Part, RunPlan
from janus_plugins.data.precomputed import (
    Address,
    Description,
    frozen_paths,
    part_file,
    source_digest,
)
from janus_plugins.data.sources import is_streaming, open_source
from janus_plugins.model.compose import build_part, compose_plan, load_part
from janus_plugins.model.native import load_native, located
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.training.answers import encoder_key
from janus_plugins.training.guard import locked
from janus_plugins.training.parts import Encoder, Rows, fill, put, write_part
from janus_plugins.training.world import World, close_world, open_world

Load = Callable[[Path], UnifiedModel]
"""What opens a trained model's folder."""

T = TypeVar("T")

_ABLE = "frozen in some stage, a fixed number of tokens, not shared"
PART_BYTES = 2**26
PART_SAMPLES = 512


@dataclass(frozen=True)
class Written:
    """Say what was written for one data entry.

    Attributes:
        folder: where it lies.
        items: items of this call, over all ranks; 0 when everything was there.
        bad: samples that could not be read.
    """

    folder: Path
    items: int
    bad: tuple[str, ...]


def precompute_run(plan: RunPlan, out: Path, say: Callable[[str], None], **options: Any) -> None:
    """Precompute in the ranks of a launcher, or in one process; the main rank tells what was done.

    Args:
        plan: the run.
        out: see `precompute`, as for `options`.
        say: prints a line.
    """
    world = open_world()
    atexit.register(close_world)
    tell = say if world.is_main else _silent
    for one in precompute(plan, out, world, say=tell, **options):
        tell(f"{one.folder}: {one.items} items written, {len(one.bad)} samples could not be read")
        for line in one.bad:
            tell(f"  {line}")


def _silent(_: str) -> None:
    """Say nothing."""


def precompute(
    plan: RunPlan,
    out: Path,
    world: World,
    *,
    model: Path | None = None,
    load: Load | None = None,
    names: Sequence[str] = (),
    paths: Sequence[str] = (),
    batch: int = 16,
    say: Callable[[str], None] = _silent,
) -> list[Written]:
    """Write the answers of a run's frozen encoders for its train data. Collective.

    Args:
        plan: the run.
        out: the folder to name under `data: {NAME: {precomputed: ...}}`.
        world: who we are.
        model: a trained model whose encoders answer (default: the run file's own weights).
        load: opens `model` (default: a native folder only).
        names: data entries (default: every train entry that is read by index).
        paths: paths such as "generation.image" (default: every one whose encoder is frozen in some stage).
        batch: items of one call of an encoder.
        say: told what is done.

    Raises:
        RunFileError: an entry or a path cannot be precomputed, another process writes the entry's folder, or
            the folder cannot be written.
        DataError: the folder holds answers of another encoder or source.
        PluginError: an encoder answers something else than its facts say.
        CheckpointError: the disk is full or read-only.
    """
    able = _chosen_paths(plan, paths)
    sources = dict(_sources(plan, names, able, say))
    if not sources:
        raise RunFileError("no data entry holds items of these paths; nothing was written")
    world.from_main(lambda: make_folder(out))
    with ExitStack() as stack:
        for name in sources:
            _lock(world, stack, out / name)
        encoders = _encoders(plan, able, model, load or _native, world)
        return [
            _entry(plan, name, source, _wanted(plan, name, encoders), out / name, world, batch, say)
            for name, source in sources.items()
        ]


def _lock(world: World, stack: ExitStack, folder: Path) -> None:
    """Let the main rank hold a folder until the stack ends: other processes would write the same parts."""
    held: list[object] = []  # by the main rank
    world.from_main(lambda: held.append(stack.enter_context(locked(folder))))


def _sources(
    plan: RunPlan, names: Sequence[str], able: Sequence[Address], say: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """Open the chosen entries that hold items of the paths; yield each with its name."""
    for name in _chosen_entries(plan, names):
        source = open_source(plan.data[name].part)
        if is_streaming(source):
            if names:
                raise RunFileError(
                    f"data.{name} is read in order, so nothing can be looked up; set streaming: false"
                )
            say(f"data.{name}: left out, it is read in order")
        elif _wanted(plan, name, dict.fromkeys(able)):
            yield name, source


def _wanted(plan: RunPlan, name: str, paths: Mapping[Address, T]) -> dict[Address, T]:
    """Return those of the paths of which a data entry has items."""
    return {at: one for at, one in paths.items() if at[1] in getattr(plan.data[name].facts, at[0])}


def _chosen_paths(plan: RunPlan, paths: Sequence[str]) -> list[Address]:
    able = frozen_paths(plan, plan.run.stages)
    if not able:
        raise RunFileError(f"no path of this run can be precomputed ({_ABLE}); nothing was written")
    if not paths:
        return able
    spelt = {f"{path}.{modality}": (path, modality) for path, modality in able}
    for name in paths:
        if name not in spelt:
            raise RunFileError(
                f"path {name!r} cannot be precomputed; these can: {', '.join(spelt)} ({_ABLE})"
            )
    return [spelt[name] for name in paths]


def _chosen_entries(plan: RunPlan, names: Sequence[str]) -> list[str]:
    train = [name for name, data in plan.data.items() if data.block.split == "train"]
    for name in names:
        if name not in train:
            raise RunFileError(f"no train entry is called {name!r}; the run has {', '.join(train) or 'none'}")
    return list(names or train)


def _encoders(
    plan: RunPlan, paths: Sequence[Address], folder: Path | None, load: Load, world: World
) -> dict[Address, Encoder]:
    parts = {part.address: part for part in plan.model.parts()}
    precision = plan.run.engine.precision
    whole: Any = None
    encoders = {}
    for path, modality in paths:
        part = parts[f"{path}.{modality}.encoder"]
        if folder is None and part.weights is not None:  # without the language model, which may be large
            module = build_part(part)
            load_part(part, module, plan)
        else:
            whole = whole or (compose_plan(plan) if folder is None else load(folder))
            _refuse_other(whole.plan, part, folder)
            module = whole.get_submodule(part.address)
        key = encoder_key(part, module, precision)
        module = module.to(world.device, torch.float32).eval()
        if precision == "bf16":
            _round(module)
        processor = load_processor(part.spec)(part.config)
        reader = getattr(plan.model, path)[modality]
        encoders[path, modality] = Encoder((path, modality), reader, module, processor, key, world.device)
    return encoders


def _round(module: nn.Module) -> None:
    """Put a module into bf16 as DeepSpeed does: its parameters, not its buffers, such as codebooks."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def _native(folder: Path) -> UnifiedModel:
    return load_native(located(folder))


def _refuse_other(trained: RunPlan, part: Part, folder: Path | None) -> None:
    theirs = {one.address: one for one in trained.model.parts()}.get(part.address)
    if theirs is None or (theirs.spec.name, theirs.config) != (part.spec.name, part.config):
        raise RunFileError(f"{folder} has another {part.address} than the run file; take its own run file")


def _entry(
    plan: RunPlan,
    name: str,
    source: Any,
    encoders: dict[Address, Encoder],
    folder: Path,
    world: World,
    batch: int,
    say: Callable[[str], None],
) -> Written:
    chunk = min(PART_SAMPLES, max(1, PART_BYTES // max(_item_bytes(plan, at) for at in encoders)))
    keys = {".".join(at): encoder.key for at, encoder in encoders.items()}
    wanted = Description(source_digest(plan.data[name]), len(source), chunk, keys)
    world.from_main(lambda: _describe(folder, wanted))
    number = -(-len(source) // chunk)
    items, bad = 0, []
    for part in range(world.rank, number, world.size):
        targets = {at: part_file(folder / ".".join(at), part) for at in encoders}
        if all(target.is_file() for target in targets.values()):
            continue
        indices = range(part * chunk, min((part + 1) * chunk, len(source)))
        rows = {at: Rows(encoder, batch) for at, encoder in encoders.items()}
        bad += list(fill(rows, source, indices, name))
        for at, target in targets.items():
            rows[at].flush()
            write_part(target, rows[at])
            items += len(rows[at].names)
        say(f"data.{name}: part {part + 1} of {number}")
    everyone = world.gather((items, bad))
    everybad = tuple(line for _, lines in everyone for line in lines)
    world.from_main(lambda: put(folder / "complete.json", json.dumps({"parts": number})))
    return Written(folder, sum(count for count, _ in everyone), everybad)


def _item_bytes(plan: RunPlan, at: Address) -> int:
    path, modality = at
    facts: Any = getattr(plan.model, path)[modality].facts
    shape = facts.shape if path == "generation" else (facts.tokens, facts.width)
    return int(math.prod(shape) * 4)


def _describe(folder: Path, wanted: Description) -> None:
    file = folder / "key.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        put(file, wanted.text())
    elif file.read_text(encoding="utf-8") != wanted.text():
        raise DataError(
            f"{folder} holds answers of another encoder, source or set of paths; choose another --out, or "
            "remove that folder"
        )
