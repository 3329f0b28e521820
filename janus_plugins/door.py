"""The user's door: compose a model from a run file, load one from a folder, or convert a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.runfile import load_run, locator
from janus_plugins.core.wiring import resolve

if TYPE_CHECKING:
    from janus_plugins.conversion.convert import Conversion
    from janus_plugins.core.plan import RunPlan
    from janus_plugins.model.unified import UnifiedModel


def plan(path: str | Path, overrides: Sequence[str] = ()) -> RunPlan:
    """Read a run file and resolve its parts, without torch.

    Args:
        path: a run file, or the name of a shipped one ("digits").
        overrides: "path=value" each, as `--set` takes them.

    Raises:
        RunFileError, WiringError, PluginError: as the run file deserves.
    """
    run = load_run(path, overrides)
    return resolve(run, locate=locator(run))


def compose(path: str | Path, overrides: Sequence[str] = (), device: str = "cpu") -> UnifiedModel:
    """Compose the model of a run file, with fresh or published weights.

    Args:
        path: a run file, or the name of a shipped one ("digits").
        overrides: "path=value" each, as `--set` takes them.
        device: where to put it; "meta" for shapes without memory.

    Raises:
        RunFileError, WiringError, PluginError: as the run file deserves; RunFileError also where there is no
            such device.
    """
    from janus_plugins.model.compose import compose_plan

    _check_device(device)
    return compose_plan(plan(path, overrides), device=device)


def load(folder: str | Path, device: str = "cpu") -> UnifiedModel:
    """Load a trained model: a native folder, an official Janus one, or one of transformers' Janus.

    The layout is recognised by content; every weight keeps the precision that it has in the files.

    Raises:
        CheckpointError: nothing there that can be read, or it is damaged.
        PluginError: a part's plugin is not installed.
        RunFileError: there is no such device.
    """
    from janus_plugins.conversion.checkpoint import recognise
    from janus_plugins.conversion.load import load_foreign
    from janus_plugins.model.native import load_native, located

    _check_device(device)
    source = located(Path(folder))
    if recognise(source) == "native":
        return load_native(source, device)
    return load_foreign(source, device)


def _check_device(device: str) -> None:
    """Refuse a device that takes no tensor here: unknown, without a driver, or not in this build of torch."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunFileError(
            f"device {device!r} cannot be used here: {reason}; choose another one, such as cpu"
        ) from error


def convert(source: str | Path, target: str | Path, layout: str = "native") -> Conversion:
    """Write a checkpoint in another layout; see `conversion.convert.convert`.

    Args:
        source: a native, official or transformers folder, recognised by content.
        target: the folder to write; it must not exist, or be empty.
        layout: "native", "official" or "transformers".

    Raises:
        RunFileError: there is no such layout.
        CheckpointError: the source is damaged or has no place in that layout, or the target is taken.
    """
    from janus_plugins.conversion.convert import convert as run

    return run(source, target, layout)
