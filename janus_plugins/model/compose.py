"""Compose a model from a resolved run file. The only caller of a component's factory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from janus_plugins.core.blame import blamed, full_name
from janus_plugins.core.catalogue import load_factory
from janus_plugins.core.errors import CheckpointError, PluginError, RunFileError
from janus_plugins.core.plan import GenerationPlan, Part, RunPlan, UnderstandingPlan
from janus_plugins.core.runfile import locator
from janus_plugins.data.texts import run_texts
from janus_plugins.model.unified import (
    GenerationPath,
    SharedUnderstandingPath,
    UnderstandingPath,
    UnifiedModel,
)
from janus_plugins.sequence.blocks import Blocks, code_order
from janus_plugins.sequence.templates import resolve_template, special_tokens
from janus_plugins.sequence.tokenizers import build_tokenizer, check_room

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Tokenizer

START_STD = 0.02
"""Spread of fresh start embeddings: that of a Llama's token embeddings."""


def build_tokenizer_for(plan: RunPlan) -> Tokenizer:
    """Build the run's tokenizer; a trained one learns from the texts of the run's train sources.

    Raises:
        WiringError: the tokenizer has more entries than the language model embeds.
    """
    block = plan.run.model.language_model.tokenizer
    texts = run_texts(plan) if block.type == "trained" else None
    tokenizer = build_tokenizer(block, special_tokens(plan.run.model), texts)
    check_room(tokenizer, plan.model.facts.vocab_size)
    return tokenizer


def compose_plan(
    plan: RunPlan,
    tokenizer: Tokenizer | None = None,
    *,
    weights: bool = True,
    device: torch.device | str = "cpu",
) -> UnifiedModel:
    """Build every part of a run's model, seeded by the run.

    Args:
        plan: what `core.wiring.resolve` answered.
        tokenizer: reuse this one (a checkpoint's) instead of building the run's.
        weights: load the published weights that parts name; False where a checkpoint follows.
        device: where to build; "meta" builds shapes without memory.

    Raises:
        PluginError: a factory fails; the message names the component and its plugin.
    """
    tokenizer = tokenizer or build_tokenizer_for(plan)
    template = resolve_template(plan.run.model.language_model.template)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(plan.run.seed)
        language_model = _language_model(plan)
        shown = plan.model.understanding
        own = {name: _understanding(path) for name, path in shown.items() if not path.shares}
        width = plan.model.facts.width
        generation = {name: _generation(path) for name, path in plan.model.generation.items()}
        shared = {name: _shared(path, generation) for name, path in shown.items() if path.shares}
        understanding = {name: own.get(name) or shared[name] for name in shown}
        for name, path in plan.model.generation.items():  # last: all other weights are as without them
            generation[name].starts = _starts(path.num_starts, width)
    model = UnifiedModel(plan, tokenizer, template, language_model, understanding, generation)
    if torch.device(device).type != "meta":
        if weights:
            _load_weights(model, plan)
        model.init_tables()
    return model


def build_part(part: Part) -> nn.Module:
    """Build one component by its factory.

    Raises:
        PluginError: the factory raised, or answered something that is no `nn.Module`, or a lazy one.
    """
    factory: Callable[..., object] = load_factory(part.spec)
    with blamed(part, "building"):
        built = factory(part.config, part.facts)
    if not isinstance(built, nn.Module):
        raise PluginError(
            f"{part.address}: {part.spec.factory} returned {type(built).__name__}, not an nn.Module"
        )
    for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
        if is_lazy(tensor):
            raise PluginError(
                f"{full_name(part)}: {name} has no size before a first batch (a lazy layer), so it can be "
                "neither trained nor loaded; give the layer its sizes, which the facts tell"
            )
    return built


def _language_model(plan: RunPlan) -> nn.Module:
    model = build_part(plan.model.language_model)
    model.attach_text_head(build_part(plan.model.text_head))  # type: ignore[operator]
    return model


def _understanding(path: UnderstandingPlan) -> UnderstandingPath:
    return UnderstandingPath(build_part(path.encoder), build_part(path.adapter), path)


def _shared(path: UnderstandingPlan, generation: dict[str, GenerationPath]) -> SharedUnderstandingPath:
    assert path.shares is not None
    encoder, part = generation[path.shares].encoder, path.encoder
    if not hasattr(encoder, "features"):
        raise PluginError(
            f"{part.address}: {part.owner.distribution}/{part.spec.name} answers feature_facts(), but its "
            f"{type(encoder).__name__} has no features(items); see core.contracts.FeaturesEncoder"
        )
    return SharedUnderstandingPath(encoder, build_part(path.adapter), path)


def _generation(path: GenerationPlan) -> GenerationPath:
    order = code_order(path.facts.grid, path.parallel).tolist()
    return GenerationPath(
        build_part(path.encoder),
        build_part(path.adapter),
        build_part(path.head),
        Blocks.of(path.parallel),
        None if order == sorted(order) else order,
        plan=path,
    )


def _starts(number: int, width: int) -> nn.Embedding | None:
    """Build the start embeddings of a path that predicts its codes in blocks, as small as a Llama's own."""
    if not number:
        return None
    starts = nn.Embedding(number, width)
    nn.init.normal_(starts.weight, std=START_STD)
    return starts


def _load_weights(model: UnifiedModel, plan: RunPlan) -> None:
    for part in plan.model.parts():
        if part.weights is not None:
            load_part(part, model.get_submodule(part.address), plan)


def load_part(part: Part, module: nn.Module, plan: RunPlan) -> None:
    """Load the published weights that a part names.

    Raises:
        RunFileError: the component loads none.
        CheckpointError: there are none of that name, or they do not fit. Both name part, file and line.
        PluginError: the component's own code fails.
    """
    place = locator(plan.run)(("model", *part.address.replace(".text_head", ".head").split("."), "weights"))
    here = f"{place}: {part.address}" if place else part.address
    load = getattr(module, "load_weights", None)
    if load is None:
        raise RunFileError(
            f"{here}: {part.spec.name} cannot load weights, but weights: {part.weights} is given; remove "
            "that line"
        )
    try:
        with blamed(part, f"loading weights {part.weights!r}"):
            load(part.weights)
    except (RunFileError, CheckpointError) as error:
        raise type(error)(f"{here}: weights: {error}{_whole_model(str(part.weights))}") from error


def _whole_model(source: str) -> str:
    """Say what to do where a part's weights are looked for in a trained model's folder."""
    from janus_plugins.model.native import is_native, located  # native composes, too

    folder = located(Path(source).expanduser())
    if not is_native(folder):
        return ""
    return f"\n{source} is a whole trained model: leave this line out, and start from it with --from {source}"
