"""Load a run file: its bases, its overrides, its validation; and write one back.

Knows nothing of components: their options are checked against the catalogue in `core/wiring.py`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

import janus_plugins
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.frame import without_nulls
from janus_plugins.core.merge import apply_override, merge_files, parse_override
from janus_plugins.core.nodes import KeyPath, Node
from janus_plugins.core.problems import own_problems, validation_problems
from janus_plugins.core.schema import RunConfig
from janus_plugins.core.suggest import closest, nearest, unexpanded
from janus_plugins.core.yaml_file import dump_yaml, load_yaml, load_yaml_text

_MOST_PROBLEMS = 20
_origins: dict[int, Node] = {}


def load_run(path: Path | str, overrides: Iterable[str] = ()) -> RunConfig:
    """Load a run file, lay it over its bases, apply `path=value` overrides, and validate it.

    Args:
        path: a file, or the name of a shipped run such as "digits".
        overrides: as given to `--set`, applied in order.

    Raises:
        RunFileError: one line a problem, `file:line: path: message`.
    """
    file = resolve_path(path)
    return _validated(_with_base(load_yaml(file).root, file, ()), overrides)


def load_run_text(text: str, name: str = "run.yaml", overrides: Iterable[str] = ()) -> RunConfig:
    """Load a run from text; `name` stands for the file in messages, and `base:` is relative to it."""
    return _validated(_with_base(load_yaml_text(text, name).root, Path(name), ()), overrides)


def dump_run(run: RunConfig) -> str:
    """Write a run as YAML, every default spelt out; `load_run` reads it back to an equal run."""
    return dump_yaml(run.model_dump(mode="json"))


def locator(run: RunConfig) -> Callable[[KeyPath], str]:
    """Return a function that says where a path of a loaded run was given ("run.yaml:12").

    It answers with an empty string for a run that was not made by `load_run` in this process.
    """
    root = _origins.get(id(run))
    return lambda path: "" if root is None else root.nearest(path).where


def resolve_path(name: Path | str) -> Path:
    """Return the file that `name` means: a path, or a shipped run's name ("digits").

    Raises:
        RunFileError: if there is neither, with the nearest shipped name.
    """
    if Path(name).exists():
        return Path(name)
    shipped = shipped_runs()
    wanted = Path(name).as_posix().removesuffix(".yaml")
    if wanted in shipped:
        return shipped[wanted]
    raise RunFileError(
        f"{name}: there is no such file, and no shipped run of that name.{nearest(wanted, shipped)} "
        f"Shipped: {', '.join(shipped) or 'none'}{unexpanded(str(name))}"
    )


def shipped_runs() -> dict[str, Path]:
    """Return the run files that come with janus-plugins, by name ("digits", "ablations/...")."""
    package = Path(janus_plugins.__file__).parent
    folder = package / "configs"
    if not folder.is_dir() and (package.parent / "pyproject.toml").is_file():
        folder = package.parent / "configs"
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).as_posix().removesuffix(".yaml"): file for file in files}


def _with_base(root: Node, file: Path, above: tuple[Path, ...]) -> Node:
    """Lay a file over the one that its `base:` names, and that over its own."""
    base = root.child("base")
    own = replace(root, value={key: node for key, node in root.value.items() if key != "base"})
    if base is None:
        # Over nothing: refuses a mapping under `stages:`, which needs a base.
        return merge_files(Node({}, root.source, root.line), own)
    chain = (*above, file.resolve())
    target = _base_path(base, file)
    if target.resolve() in chain:
        names = " -> ".join(each.name for each in (*chain, target))
        raise RunFileError(f"{base.where}: base: the files name one another in a circle: {names}")
    return merge_files(_with_base(load_yaml(target).root, target, chain), own)


def _base_path(base: Node, file: Path) -> Path:
    if not (isinstance(base.value, str) and base.value):
        raise RunFileError(f"{base.where}: base: should be the path of a run file (got {base.plain()!r:.60})")
    beside = Path(os.path.normpath(file.parent / base.value))
    if beside.is_file():
        return beside
    if base.value in shipped_runs():
        return shipped_runs()[base.value]
    hint = unexpanded(base.value) or _nearest_base(base.value, beside)
    raise RunFileError(f"{base.where}: base: there is no file {str(beside)!r}{hint}")


def _nearest_base(name: str, beside: Path) -> str:
    """Guess which shipped run, or which file of the same folder, was meant."""
    files = [Path(name).parent / path.name for path in sorted(beside.parent.glob("*.yaml"))]
    spellings = {run: run for run in shipped_runs()} | {
        str(file.with_suffix("")): str(file) for file in files
    }
    guess = closest(name.removesuffix(".yaml"), spellings)
    meant = f". Did you mean {spellings[guess]!r}?" if guess else ""
    return f", and no shipped run of that name{meant}"


def _validated(root: Node, overrides: Iterable[str]) -> RunConfig:
    for text in overrides:
        root = apply_override(root, parse_override(text))
    root = without_nulls(root, RunConfig)
    problems = list(own_problems(root))
    try:
        run = RunConfig.model_validate(root.plain())
    except ValidationError as error:
        problems += validation_problems(error, root)
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        rest = [f"... and {more} more"] if more > 0 else []
        raise RunFileError("\n".join(problems[:_MOST_PROBLEMS] + rest))
    _origins[id(run)] = root
    weakref.finalize(run, _origins.pop, id(run), None)
    return run
