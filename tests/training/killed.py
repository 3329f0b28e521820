"""As a script: a toy run for tests to kill. Arguments: folder, ZeRO stage, "fresh" or "resume"."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from janus_plugins.core.errors import Interrupted
from janus_plugins.sequence.batch import Batch
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.run import run_recipe
from janus_plugins.training.world import World, close_world, open_world

from .toys import ToyRecipe, toy_run, toy_stage, zero


class SlowRecipe(ToyRecipe):
    """Take a moment for each batch, so that a signal can fall anywhere."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def batch(self, offset: int, step: int, world: World, number: int) -> Batch:
        time.sleep(self.seconds)
        return super().batch(offset, step, world, number)


def long_run(zero_stage: int, seconds: float = 0.0) -> Recipe:
    stages = toy_stage("one", steps=12), toy_stage("two", steps=12, learn={"understanding": 1e-2})
    return toy_run(*stages, data=SlowRecipe(seconds), engine=zero(zero_stage, save_every=1))


def main(out: str, zero_stage: str, how: str) -> int:
    try:
        recipe = long_run(int(zero_stage), seconds=0.02)
        run_recipe(recipe, Path(out), open_world(), resume=how == "resume")
    except Interrupted as error:
        return error.exit_code
    finally:
        close_world()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
