"""A resolved run file as a recipe for the loop: the unified model, its loader, its native folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.schema import EngineBlock, StageBlock
from janus_plugins.data.loader import StepLoader
from janus_plugins.data.mixture import stage_sources
from janus_plugins.data.precomputed import options_of
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.model.empty import compose_empty
from janus_plugins.model.native import save_native
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.training.answers import check_precomputed
from janus_plugins.training.metrics import Sampler
from janus_plugins.training.recipe import Recipe
from janus_plugins.training.world import World

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Tokenizer


@dataclass(frozen=True)
class Start:
    """Begin with the weights of another model, in the place of those that parts name.

    Attributes:
        source: names it in messages.
        give: gives a freshly composed model its weights.
        tokenizer: its tokenizer, for a run that would train its own; None where it is not known.
    """

    source: str
    give: Callable[[UnifiedModel], None]
    tokenizer: Tokenizer | None = None


def plan_recipe(
    plan: RunPlan,
    sampler: Sampler | None = None,
    start: Start | None = None,
    tokenizer: Tokenizer | None = None,
    kept: bool = False,
) -> Recipe:
    """Make the recipe of a resolved run file; its tokenizer is built once, here.

    A tokenizer that is trained on the run's texts is that of the model to start from, where there is one: its
    embeddings know no other ids.

    Args:
        plan: the run.
        sampler: makes sample pictures.
        start: what the run begins with.
        tokenizer: what the run was begun with before.
        kept: whether checkpoints keep all weights that it began with, so that none are read from elsewhere.
    """
    if tokenizer is None and start is not None and plan.run.model.language_model.tokenizer.type == "trained":
        tokenizer = start.tokenizer
    tokenizer = tokenizer or build_tokenizer_for(plan)

    def build(weights: bool) -> nn.Module:
        if not weights:
            return prepared(compose_empty(plan, tokenizer), plan.run.engine)
        model = compose_plan(plan, tokenizer, weights=start is None and not kept)
        if start is not None and not kept:
            start.give(model)
        return prepared(model, plan.run.engine)

    def loader(stage: StageBlock, world: World, state: Mapping[str, Any] | None) -> Iterable[Any]:
        return StepLoader(plan, cast(Any, tokenizer), stage, rank=world.rank, world=world.size, state=state)

    def save_start(folder: Path) -> None:
        tokenizer.save(str(folder))

    def save(model: nn.Module, folder: Path) -> None:
        save_native(cast(UnifiedModel, model), folder)

    understanding, generation = plan.model.understanding.values(), plan.model.generation.values()
    encoders = [path.encoder for path in understanding] + [path.encoder for path in generation]
    sources = [data.part for data in plan.data.values() if data.block.split == "train"]
    return Recipe(
        stages=plan.run.stages,
        engine=plan.run.engine,
        seed=plan.run.seed,
        build=build,
        loader=loader,
        save_native=save,
        save_start=save_start,
        source=None if start is None else start.source,
        check_inputs=lambda model, stage: check_precomputed(plan, model, stage),
        sampler=sampler,
        identity={
            "model": plan.run.model.model_dump(mode="json"),
            "data": {
                name: block.model_dump(mode="json", exclude={"precomputed"})
                for name, block in plan.run.data.items()
                if block.split == "train"
            },
            "options": {part.address: options_of(part) for part in [*plan.model.parts(), *sources]},
            "draws": [sorted(stage_sources(plan, stage)) for stage in plan.run.stages],
        },
        provenance=provenance(plan),
        encoders=tuple(encoder.address for encoder in encoders),
        callbacks=tuple(plan.callbacks.values()),
    )


def provenance(plan: RunPlan) -> dict[str, Any]:
    """Return which distributions a run is made with: plugins by part, and the libraries below us."""
    parts = {
        part.address: f"{part.owner.distribution}=={part.owner.version} {part.spec.kind}/{part.spec.name}"
        for part in [*plan.model.parts(), *plan.extras()]
    }
    libraries = ("janus-plugins", "torch", "deepspeed", "transformers", "datasets")
    return {"parts": parts, "libraries": {name: version(name) for name in libraries}}


def prepared(model: UnifiedModel, engine: EngineBlock) -> UnifiedModel:
    """Let a model compute its training passes as the engine's options ask."""
    if engine.checkpointing:
        cast(Any, model.language_model).set_checkpointing(engine.checkpointing)
    if engine.compile:
        _compile(model)
    return model


def _compile(model: UnifiedModel) -> None:
    """Compile what the language model and other parts offer."""
    language_model = model.language_model
    if not hasattr(language_model, "compile_blocks"):
        raise RunFileError(
            f"engine.compile: {type(language_model).__name__} has no compile_blocks(); set it to false"
        )
    for part in model.plan.model.parts():
        offered = getattr(model.get_submodule(part.address), "compile_blocks", None)
        if offered is not None:
            offered()
