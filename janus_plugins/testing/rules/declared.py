"""Rules about what a component declares, before any of it is built."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from functools import cache

from janus_plugins.core.plugins import installed_entries
from janus_plugins.testing.case import ENCODERS, Case
from janus_plugins.testing.report import Broken, expect

_SCRIPT = """
import importlib, json, sys
request = json.loads(sys.stdin.read())
for name in request["modules"]:
    importlib.import_module(name)
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps(heavy))
"""


def listing(case: Case) -> None:
    """Check that declaring a component imports neither torch nor transformers."""
    modules = (case.spec.config.__module__, *_entry_modules(case))
    heavy = _imported(modules)
    wanted = f"a new process to import {', '.join(modules)} without torch"
    expect(not heavy, wanted, f"{' and '.join(heavy)} imported; import them in the factory's module only")


@cache
def _imported(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Import modules in a new process, and say which heavy ones came with them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps({"modules": modules}),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    if done.returncode:
        wanted = f"a new process to import {', '.join(modules)}"
        raise Broken(wanted, (done.stderr.strip().splitlines() or ["nothing"])[-1])
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _entry_modules(case: Case) -> list[str]:
    """Name the entry point's module of the distribution whose package declares the component."""
    package = case.spec.config.__module__.partition(".")[0]
    found = [installed.entry.module for installed in installed_entries() if installed.problem is None]
    return [module for module in found if module.partition(".")[0] == package]


def options(case: Case) -> None:
    """Check that the config is data: it answers the same facts each time, pickles, and has a JSON Schema."""
    config = case.config
    again = type(config).model_validate(dict(case.options))
    expect(again == config, "equal options to give equal configs", f"{again!r} and {config!r}")
    if case.kind in ENCODERS:
        expect(again.facts() == case.facts, "the same facts each time", f"{again.facts()} and {case.facts}")
    try:
        copied = pickle.loads(pickle.dumps(config))
        json.dumps(type(config).model_json_schema())
    except Exception as error:
        raise Broken(
            "a config that pickles and has a JSON Schema", f"{type(error).__name__}: {error}"
        ) from error
    expect(copied == config, "a pickled config to come back equal", copied)
