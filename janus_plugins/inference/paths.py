"""From raw items to tensors, embeddings and codes, and from codes back to artefacts.

Items run in groups of equal shape, so that no item is padded because of another: an answer does not
depend on what else is asked in the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from janus_plugins.core.answered import codes_of, decoded_of
from janus_plugins.core.blame import advice, blamed, full_name
from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.errors import BadSample, JanusPluginsError, PluginError, RunFileError
from janus_plugins.core.plan import Part
from janus_plugins.core.suggest import nearest
from janus_plugins.inference.checks import Given
from janus_plugins.inference.halves import widened
from janus_plugins.sequence.assemble import collate_items, finite

if TYPE_CHECKING:
    import numpy as np

    from janus_plugins.core.contracts import GenerationProcessor
    from janus_plugins.core.plan import GenerationPlan, UnderstandingPlan
    from janus_plugins.model.unified import UnifiedModel

    Arrays = dict[str, np.ndarray]

ITEMS_AT_ONCE = 16
"""Most items that run through an encoder together."""


def understanding_path(model: UnifiedModel, modality: str) -> UnderstandingPlan:
    """Return a model's understanding path, or raise `RunFileError` naming those it has."""
    return cast("UnderstandingPlan", _path(model.plan.model.understanding, modality, "understand"))


def marks(model: UnifiedModel) -> dict[str, str]:
    """Return what marks the place of an item in a text -> its modality, of those that a model understands."""
    names = list(model.plan.model.understanding)
    return {f"<{name}>": name for name in names} | {
        model.item_tokens(name).placeholder: name for name in names
    }


def generation_path(model: UnifiedModel, modality: str) -> GenerationPlan:
    """Return a model's generation path, or raise `RunFileError` naming those it has."""
    return cast("GenerationPlan", _path(model.plan.model.generation, modality, "generate"))


def made_modality(model: UnifiedModel, modality: str | None) -> str:
    """Return the modality that a call means: the one it names, the model's only one, or images.

    Raises:
        RunFileError: the model does not generate it, or generates several others and none is named.
    """
    have = sorted(model.plan.model.generation)
    if modality is None and len(have) > 1 and "image" not in have:
        raise RunFileError(
            f"this model generates {', '.join(have)}; say which one: modality={have[0]!r}, say"
        )
    if modality is None:
        modality = have[0] if len(have) == 1 else "image"
    generation_path(model, modality)
    return modality


def processor_of(part: Part) -> GenerationProcessor:
    """Make the processor of an encoder; only a generation encoder's can restore and write."""
    return cast("GenerationProcessor", load_processor(part.spec)(part.config))


def read_items(part: Part, values: Sequence[object]) -> list[Arrays]:
    """Return the arrays of raw items.

    Raises:
        BadSample: an item that cannot be read, with its position.
    """
    processor = processor_of(part)
    return [_read(processor, part, index, value) for index, value in enumerate(values)]


@torch.no_grad()
def embed_items(model: UnifiedModel, modality: str, arrays: Sequence[Arrays]) -> list[Tensor]:
    """Return embeddings [T', M] of read items, as many slots each as the item takes.

    Raises:
        PluginError: the path failed, or answered something else than its facts say, or no finite numbers.
    """
    plan, path = understanding_path(model, modality), cast(Any, model.understanding[modality])
    processor = processor_of(plan.encoder)
    entering = [int(processor.num_tokens(item)) for item in arrays]

    def run(group: list[int], items: dict[str, Tensor]) -> Tensor:
        return path(items, [entering[index] for index in group])  # type: ignore[no-any-return]

    with widened(path):
        embedded = _in_groups(arrays, model.device, run)
    embeds = [values[: plan.tokens(number)] for values, number in zip(embedded, entering, strict=True)]
    _check_finite(plan, embeds)
    return embeds


def _check_finite(plan: UnderstandingPlan, embeds: Sequence[Tensor]) -> None:
    """Refuse embeddings [T', M] that would spoil whatever is answered about them; a device waits once."""
    if not embeds:
        return
    sound = torch.stack([values.isfinite().all() for values in embeds]).tolist()
    if not all(sound):
        index = sound.index(False)
        wrong = int((~embeds[index].isfinite()).sum())
        raise PluginError(
            f"{full_name(plan.encoder)}: what it and its adapter make of item {index} holds NaN or infinite "
            f"values, {wrong} of {embeds[index].numel()} in {embeds[index].dtype}; look for weights that do, "
            f"or take a wider type than fp16; {advice(plan.encoder)}"
        )


def embed_given(model: UnifiedModel, given: Sequence[Given]) -> list[list[tuple[str, Tensor]]]:
    """Embed every question's items [T, M], those of all questions together; in the questions' order."""
    shown: list[list[tuple[str, Tensor]]] = [[] for _ in given]
    for modality in dict.fromkeys(name for row in given for name in row):
        part = understanding_path(model, modality).encoder
        flat = [(index, value) for index, row in enumerate(given) for value in row.get(modality, ())]
        # An item that several questions are about is read once, and its embeddings are one tensor.
        distinct = {_identity(value): value for _, value in flat}
        arrays = read_items(part, list(distinct.values()))
        embedded = dict(zip(distinct, embed_items(model, modality, arrays), strict=True))
        for index, value in flat:
            shown[index].append((modality, embedded[_identity(value)]))
    return shown


def _identity(value: object) -> object:
    """Return what tells an item from others: a path itself, anything else by being the same object."""
    return str(value) if isinstance(value, (str, Path)) else id(value)


@torch.no_grad()
def encode_items(model: UnifiedModel, modality: str, arrays: Sequence[Arrays]) -> Tensor:
    """Return codes [N, T] or [N, T, Q], or latents [N, T, C], of read items, on the CPU."""
    plan, encoder = generation_path(model, modality), cast(Any, model.generation[modality]).encoder
    with widened(encoder):
        made = _in_groups(arrays, model.device, lambda _, items: codes_of(plan, encoder, items, wait=True))
    return torch.stack([codes.cpu() for codes in made])


@torch.no_grad()
def decode_items(model: UnifiedModel, modality: str, codes: Tensor) -> list[Any]:
    """Return artefacts (for images: PIL images) of codes [N, T] or [N, T, Q], or latents [N, T, C]."""
    plan = generation_path(model, modality)
    processor = processor_of(plan.encoder)
    encoder = cast(Any, model.generation[modality]).encoder
    artefacts = []
    for one in codes:
        # One at a time: in a batch convolutions round differently, and 9 of 100 pictures (measured)
        # then had a pixel one level off, depending on their batch mates.
        with widened(encoder):
            decoded = decoded_of(plan, encoder, one[None].to(model.device))
        with blamed(plan.encoder, "its processor's restore() of", decoded):
            artefacts.append(processor.restore(decoded.float().cpu().numpy()[0]))
    return artefacts


def _path(paths: dict[str, Any], modality: str, verb: str) -> Any:
    if modality in paths:
        return paths[modality]
    known = ", ".join(sorted(paths)) or "nothing"
    raise RunFileError(
        f"this model cannot {verb} {modality!r}; it can {verb}: {known}.{nearest(modality, paths)}"
    )


def _named(value: object) -> str:
    return repr(str(value)) if isinstance(value, Path) else f"a {type(value).__name__}"


def _read(processor: GenerationProcessor, part: Part, index: int, value: object) -> Arrays:
    try:
        arrays = processor(value)
    except JanusPluginsError:
        raise
    except Exception as error:
        raise BadSample(
            f"item {index}, {_named(value)}, cannot be read by {part.spec.name} ({part.address}): "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        return finite(arrays, part)
    except BadSample as error:
        raise BadSample(f"item {index}, {_named(value)}: {error}") from error


def _in_groups(
    arrays: Sequence[Arrays], device: torch.device, run: Callable[[list[int], dict[str, Tensor]], Tensor]
) -> list[Tensor]:
    """Run items of equal shapes together, and return each item's own output in order.

    `run` is given which items they are, and their tensors.
    """
    outputs: dict[int, Tensor] = {}
    for group in _groups(arrays):
        items = collate_items([arrays[index] for index in group])
        answers = run(group, {name: tensor.to(device) for name, tensor in items.items()})
        outputs.update(zip(group, answers, strict=True))
    return [outputs[index] for index in range(len(arrays))]


def _groups(arrays: Sequence[Arrays]) -> Iterator[list[int]]:
    shapes: dict[object, list[int]] = {}
    for index, item in enumerate(arrays):
        shape = tuple(sorted((name, array.shape) for name, array in item.items()))
        shapes.setdefault(shape, []).append(index)
    for indices in shapes.values():
        for first in range(0, len(indices), ITEMS_AT_ONCE):
            yield indices[first : first + ITEMS_AT_ONCE]
