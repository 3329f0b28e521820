"""Options as plain data: what a model folder and precomputed answers are told apart by."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from janus_plugins.core.plan import plain_options
from janus_plugins.core.specs import ComponentConfig


class Inner(ComponentConfig):
    kept: frozenset[str]


class Options(ComponentConfig):
    names: set[str]
    numbers: list[int]
    inner: Inner
    by_name: dict[str, list[Inner]]


NAMES = {f"name {index}" for index in range(9)}
PRINT = (
    "from tests.core.test_plain_options import *\n"
    "inner = Inner(kept=frozenset(NAMES))\n"
    "print(plain_options(Options(names=NAMES, numbers=[3, 1], inner=inner, by_name={'b': [inner], 'a': []})))"
)


def test_sets_are_in_the_same_order_in_every_process() -> None:
    told = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", PRINT]
        run = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        )
        told.add(run.stdout)
    ordered = sorted(NAMES)
    inner = {"kept": ordered}
    wanted: dict[str, Any] = {
        "names": ordered, "numbers": [3, 1], "inner": inner, "by_name": {"b": [inner], "a": []}
    }  # fmt: skip
    assert told == {f"{wanted}\n"}


class Odd(ComponentConfig, arbitrary_types_allowed=True):
    thing: object = None


@pytest.mark.parametrize(("value", "plain"), [({"a": 1}, {"thing": {"a": 1}}), (object(), {})])
def test_options_that_are_no_plain_data_are_none(value: object, plain: dict[str, Any]) -> None:
    assert plain_options(Odd(thing=value)) == plain
