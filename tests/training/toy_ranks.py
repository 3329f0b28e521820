"""As a script: one rank of a toy run in which something befalls rank 1 alone at its third step.

Arguments: folder, ZeRO stage, what happens: "nan", "signal", "error", "callback-" and what it does, "nothing",
"resume" (nothing either).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from janus_plugins.core.errors import DataError, Interrupted, PluginError
from janus_plugins.sequence.batch import Batch
from janus_plugins.training.run import run_recipe
from janus_plugins.training.world import World, close_world, open_world

from .toys import ToyBadRecord, ToyRecipe, toy_run, zero
from .watchers import Acting, watcher


class Mishap(ToyRecipe):
    def __init__(self, what: str) -> None:
        self.what = what

    def batch(self, offset: int, step: int, world: World, number: int) -> Batch:
        batch = super().batch(offset, step, world, number)
        if (world.rank, step) != (1, 2):
            return batch
        if self.what == "nan":
            batch.understanding["image"].items["pixels"][0] = float("nan")
        elif self.what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.what == "error":
            raise DataError("the disk has gone away")
        return batch

    def bad(self, step: int) -> tuple[Any, ...]:
        return (ToyBadRecord(f"rank {os.environ['RANK']}", "truncated"),) if step == 4 else ()


def main(out: str, zero_stage: str, what: str) -> int:
    world = open_world()
    try:
        _, watches, does = what.partition("callback-")
        watching = (watcher(Acting, at=3, rank=1, does=does),) if watches else ()
        recipe = toy_run(data=Mishap(what), engine=zero(int(zero_stage)), callbacks=watching)
        run_recipe(recipe, Path(out), world, resume=what == "resume")
    except (Interrupted, DataError, PluginError) as error:
        (Path(out) / f"rank_{world.rank}.txt").write_text(str(error))
        return error.exit_code
    finally:
        close_world()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
