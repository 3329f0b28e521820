"""The sizes of a Janus: what every layout's config.json says in its own words.

Only models of the shipped components (llama, siglip, mlp, vq, code-mlp) have a foreign layout; whatever else
a run file can compose is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.plan import Part, RunPlan

MODALITY = "image"
OWNER = "janus-plugins"
NORM_GROUPS = 32
"""Groups of GroupNorm in the VQ model; fixed in both foreign layouts."""
BACKGROUND = (127, 127, 127)
"""Colour of the padding of pictures; both foreign layouts derive it from the mean of the pixels."""


class Siglip(NamedTuple):
    """Hold what a SigLIP's name stands for."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float


_BASE, _LARGE, _SO400M = Siglip(768, 12, 12, 4.0), Siglip(1024, 24, 16, 4.0), Siglip(1152, 27, 16, 3.7362)
TIMM_SIGLIPS = {
    **{f"vit_base_patch16_siglip_{size}": _BASE for size in (224, 256, 384, 512)},
    **{f"vit_large_patch16_siglip_{size}": _LARGE for size in (256, 384)},
    **{f"vit_so400m_patch14_siglip_{size}": _SO400M for size in (224, 378, 384)},
}
"""timm's SigLIPs with the exact GELU that both foreign layouts compute; others use its tanh form."""

DEFAULT_SIGLIP = "vit_large_patch16_siglip_384"


@dataclass(frozen=True)
class Llama:
    """Hold the sizes of the language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    tie: bool


@dataclass(frozen=True)
class Vision:
    """Hold the sizes of the understanding encoder and its adapter."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    adapter_depth: int

    @property
    def side(self) -> int:
        """Return patches along each axis."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class Vq:
    """Hold the sizes of the picture tokenizer, its adapter and its head."""

    image_size: int
    channels: int
    multipliers: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    code_width: int
    codebook_size: int
    adapter_depth: int
    head_width: int


@dataclass(frozen=True)
class Architecture:
    """Hold the sizes of a whole model."""

    llama: Llama
    vision: Vision
    vq: Vq

    def model_block(self) -> dict[str, Any]:
        """Return the parts as a run file spells them, without tokenizer and template."""
        language_model = {"use": "llama", "options": dict(vars(self.llama))}
        vision, vq, model_width = self.vision, self.vq, self.llama.hidden_size
        head = {} if vq.head_width == model_width else {"width": vq.head_width}
        return {
            "language_model": language_model,
            "understanding": {
                MODALITY: {
                    "encoder": {"use": "siglip", "options": _siglip_options(vision)},
                    "adapter": {"use": "mlp", "options": {"depth": vision.adapter_depth}},
                }
            },
            "generation": {
                MODALITY: {
                    "encoder": {"use": "vq", "options": _vq_options(vq)},
                    "adapter": {"use": "code-mlp", "options": {"depth": vq.adapter_depth}},
                    "head": {"use": "code-mlp", "options": head},
                }
            },
        }


def _siglip_options(vision: Vision) -> dict[str, Any]:
    """Spell out only what the default name does not stand for."""
    sizes = Siglip(vision.width, vision.depth, vision.heads, vision.mlp_ratio)
    for name, named in TIMM_SIGLIPS.items():
        patch, pixels = (int(name.split("_")[at].removeprefix("patch")) for at in (2, -1))
        if (named, patch, pixels) == (sizes, vision.patch_size, vision.image_size):
            return {"name": name}
    return {
        "name": DEFAULT_SIGLIP,
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.width,
        "depth": vision.depth,
        "num_heads": vision.heads,
        "mlp_ratio": vision.mlp_ratio,
    }


def _vq_options(vq: Vq) -> dict[str, Any]:
    skipped = ("adapter_depth", "head_width")
    options = {name: value for name, value in vars(vq).items() if name not in skipped}
    return {**options, "multipliers": list(vq.multipliers), "norm_groups": NORM_GROUPS}


def architecture_of(plan: RunPlan) -> Architecture:
    """Return the sizes of a resolved run's model.

    Raises:
        CheckpointError: it has a part that the foreign layouts have no place for.
    """
    model = plan.model
    others = sorted(({*model.understanding, *model.generation}) - {MODALITY})
    lacking = [name for name in ("understanding", "generation") if MODALITY not in getattr(model, name)]
    if others or lacking:
        what = f"a path for {', '.join(others)}" if others else f"no {' and no '.join(lacking)} of images"
        raise CheckpointError(
            f"this model has {what}; the foreign layouts hold exactly one of each for images"
        )
    understanding, generation = model.understanding[MODALITY], model.generation[MODALITY]
    if generation.num_starts:
        raise CheckpointError(
            f"generation.{MODALITY} predicts {generation.num_starts + 1} codes at once (parallel); models of "
            "the foreign layouts predict one, so this model can only be kept in the native layout"
        )
    _need(model.language_model, "llama")
    _need(model.text_head, "text", bias=False)
    _need(understanding.encoder, "siglip", channels=3, background=BACKGROUND, rotate=False)
    _need(understanding.adapter, "mlp")
    _need(generation.encoder, "vq", in_channels=3, norm_groups=NORM_GROUPS)
    _need(generation.adapter, "code-mlp")
    _need(generation.head, "code-mlp")
    return Architecture(
        _llama(model.language_model),
        _vision(understanding.encoder, understanding.adapter, model.facts.width),
        _vq(generation.encoder, generation.adapter, generation.head, model.facts.width),
    )


def _need(part: Part, name: str, **options: Any) -> None:
    """Refuse a part that is another component, or has options that no foreign layout can say."""
    if (part.owner.distribution, part.spec.name) != (OWNER, name):
        raise CheckpointError(
            f"{part.address} is {part.owner.distribution}/{part.spec.name}; the foreign layouts hold "
            f"{OWNER}/{name} there, so this model can only be kept in the native layout"
        )
    for option, wanted in options.items():
        given = getattr(part.config, option)
        if given != wanted:
            raise CheckpointError(
                f"{part.address}: {option} is {given}; in the foreign layouts it is {wanted} for every model"
            )


def _llama(part: Part) -> Llama:
    config: Any = part.config
    if config.folder is not None:
        raise CheckpointError(
            f"{part.address}: its sizes come from the folder {config.folder!r}; spell them out in the config "
            "to convert this model"
        )
    heads = config.num_heads
    named = {name: getattr(config, name) for name in Llama.__dataclass_fields__}
    return Llama(**{**named, "num_key_value_heads": config.num_key_value_heads or heads})


def _vision(encoder: Part, adapter: Part, model_width: int) -> Vision:
    config: Any = encoder.config
    if config.name not in TIMM_SIGLIPS:
        raise CheckpointError(
            f"{encoder.address}: {config.name} has no foreign layout; of SigLIP these have: "
            f"{', '.join(TIMM_SIGLIPS)}"
        )
    if adapter.config.width not in (None, model_width):  # type: ignore[attr-defined]
        _need(adapter, "mlp", width=model_width)
    named = TIMM_SIGLIPS[config.name]
    return Vision(
        image_size=config.image_size,
        patch_size=config.patch,
        width=config.width,
        depth=config.depth or named.depth,
        heads=config.num_heads or named.heads,
        mlp_ratio=config.mlp_ratio or named.mlp_ratio,
        adapter_depth=adapter.config.depth,  # type: ignore[attr-defined]
    )


def _vq(encoder: Part, adapter: Part, head: Part, model_width: int) -> Vq:
    config: Any = encoder.config
    sizes = {name: getattr(config, name) for name in Vq.__dataclass_fields__ if hasattr(config, name)}
    depth = adapter.config.depth  # type: ignore[attr-defined]
    return Vq(**sizes, adapter_depth=depth, head_width=head.config.width or model_width)  # type: ignore[attr-defined]
