"""Hold the sizes that a config gives against the tensors' headers, before a model of these sizes is built.

A damaged config may ask for more layers, or for wider ones, than any memory holds. A few tensors suffice: the
last of each kind of layer, and those whose shapes have every size in them. All others are held against the
model afterwards; see `account.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from janus_plugins.conversion.account import refuse
from janus_plugins.conversion.architecture import Architecture, Llama, Vision, Vq
from janus_plugins.conversion.keys import Layout, place_of, shapes_in
from janus_plugins.model.tensor_file import Entry

Shape = tuple[int, ...]


def check_sizes(architecture: Architecture, entries: Mapping[str, Entry], layout: Layout, where: str) -> None:
    """Refuse tensors that are missing or have other shapes than a config asks for, of the telling ones.

    Args:
        architecture: what the config says.
        entries: the tensors of a foreign folder, from its files' headers.
        layout: the folder's layout.
        where: the folder, for messages.

    Raises:
        CheckpointError: naming the tensors and both shapes.
    """
    refuse(list(_problems(architecture, entries, layout)), where)


def _problems(architecture: Architecture, entries: Mapping[str, Entry], layout: Layout) -> Iterator[str]:
    for native, wanted in _telling(architecture):
        place = place_of(native, layout)
        if place is None:
            yield f"the config asks for {native}, which the {layout} layout has no name for"
            continue
        name, shape = place.names[0], shapes_in(wanted, place.form)
        if name not in entries:
            yield f"missing tensor {name}"
        elif entries[name].shape != shape:
            yield f"{name} has shape {list(entries[name].shape)}, the config asks for {list(shape)}"


def _telling(architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    """Yield native name and shape of the tensors that tell a model's sizes."""
    llama, vision, vq = architecture.llama, architecture.vision, architecture.vq
    yield from _of_llama(llama)
    yield from _of_vision(vision)
    yield from _of_vq(vq)
    hidden, generation = llama.hidden_size, "generation.image"
    yield _last_linear("understanding.image.adapter", vision.adapter_depth, vision.width, hidden)
    yield _last_linear(f"{generation}.adapter", vq.adapter_depth, vq.code_width, hidden)
    yield f"{generation}.adapter.table.weight", (vq.codebook_size, vq.code_width)
    yield f"{generation}.head.output_mlp_projector.weight", (vq.head_width, hidden)
    yield f"{generation}.head.vision_head.weight", (vq.codebook_size, vq.head_width)


def _of_llama(llama: Llama) -> Iterator[tuple[str, Shape]]:
    layer, hidden = f"language_model.model.layers.{llama.num_layers - 1}", llama.hidden_size
    yield "language_model.model.embed_tokens.weight", (llama.vocab_size, hidden)
    yield f"{layer}.mlp.gate_proj.weight", (llama.intermediate_size, hidden)
    width = hidden // llama.num_heads * llama.num_key_value_heads
    yield f"{layer}.self_attn.k_proj.weight", (width, hidden)


def _of_vision(vision: Vision) -> Iterator[tuple[str, Shape]]:
    trunk, width, patch = "understanding.image.encoder.trunk", vision.width, vision.patch_size
    yield f"{trunk}.pos_embed", (1, vision.side**2, width)
    yield f"{trunk}.patch_embed.proj.weight", (width, 3, patch, patch)
    yield f"{trunk}.blocks.{vision.depth - 1}.mlp.fc1.weight", (int(width * vision.mlp_ratio), width)


def _of_vq(vq: Vq) -> Iterator[tuple[str, Shape]]:
    encoder, widths = "generation.image.encoder", [vq.channels * each for each in vq.multipliers]
    yield f"{encoder}.encoder.conv_in.weight", (vq.channels, 3, 3, 3)
    for level, width in enumerate(widths):
        last = f"{encoder}.encoder.conv_blocks.{level}.res.{vq.num_res_blocks - 1}"
        yield f"{last}.conv2.weight", (width, width, 3, 3)
    yield f"{encoder}.encoder.conv_out.weight", (vq.z_channels, widths[-1], 3, 3)
    yield f"{encoder}.quantize.embedding.weight", (vq.codebook_size, vq.code_width)


def _last_linear(adapter: str, depth: int, width_in: int, hidden: int) -> tuple[str, Shape]:
    return f"{adapter}.layers.{2 * depth - 2}.weight", (hidden, width_in if depth == 1 else hidden)
