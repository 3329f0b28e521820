"""The user's door: compose a model from a run file, or load one from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.runfile import load_run, locator
from janus_plugins.core.wiring import resolve

if TYPE_CHECKING:
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
        RunFileError, WiringError, PluginError: as the run file deserves.
    """
    from janus_plugins.model.compose import compose_plan

    return compose_plan(plan(path, overrides), device=device)


def load(folder: str | Path, device: str = "cpu") -> UnifiedModel:
    """Load a trained model from a native folder.

    Raises:
        CheckpointError: nothing there that can be read, or it is damaged.
        PluginError: a part's plugin is not installed.
    """
    from janus_plugins.model.native import is_native, load_native

    source = Path(folder)
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; give the folder of a trained model")
    for candidate in (source, source / "model"):
        if is_native(candidate):
            return load_native(candidate, device)
    raise CheckpointError(f"{source} holds no native checkpoint (config.yaml and manifest.json)")
