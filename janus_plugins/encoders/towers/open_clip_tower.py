"""The image towers that open_clip builds itself, and weights in its layout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import open_clip
from open_clip.model import _build_vision_tower, resize_pos_embed
from torch import Tensor, nn

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.tiles import read_tiles
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.towers.options import Colours
from janus_plugins.encoders.towers.timm_trunk import TimmTower, arguments, measure_trunk

if TYPE_CHECKING:
    from janus_plugins.encoders.towers.eva_spec import EvaClipConfig
    from janus_plugins.encoders.towers.open_clip_spec import OpenClipConfig

_PREFIX = "visual."


class OpenClipTower(nn.Module):
    """Turn pictures, or tiles [N, tiles, C, S, S], into tokens [N, T, width].

    A VisionTransformer or a ModifiedResNet of open_clip. What only CLIP's pooled vector needs is taken off.
    """

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.config, self.name = config, config.name
        described = config.description
        self.quick_gelu = bool(described.get("quick_gelu", False))
        visual = _build_vision_tower(described["embed_dim"], dict(described["vision_cfg"]), self.quick_gelu)
        if config.channels != 3:
            visual.conv1 = _of_channels(visual.conv1, config.channels)
        self._published = frozenset(visual.state_dict())
        if isinstance(visual, open_clip.transformer.VisionTransformer):
            visual.proj, visual.output_tokens = None, True
            visual.pool_type, visual.final_ln_after_pool = "tok", False
        else:
            visual.attnpool = nn.Identity()
        self.visual = visual

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return tokens [N, T, width] of {"pixels"}, and of "pixels_lengths" tiles where they vary."""
        return read_tiles(items, self._read)

    def _read(self, pixels: Tensor) -> Tensor:
        made = self.visual(pixels.to(self.visual.conv1.weight.dtype))
        tokens: Tensor = made[1] if isinstance(made, tuple) else made.flatten(2).transpose(1, 2)
        return tokens

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse each block of a vision transformer."""
        if isinstance(self.visual, open_clip.transformer.VisionTransformer):
            for block in self.visual.transformer.resblocks:
                block.compile(dynamic=True)

    def load_weights(self, source: str) -> None:
        """Load weights from a file, a folder, a hub id, or one of open_clip's tags for this model.

        The text tower's are left out; positions are resampled where the picture's size differs.

        Raises:
            CheckpointError: nothing there, keys or shapes that do not fit, another activation or other
                colours.
        """
        self._check_activation(source)
        check_known(self.config, source)
        tensors = read_weights(hub_id(self.name, source))
        resize_pos_embed(tensors, SimpleNamespace(visual=self.visual))
        seen = {
            name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)
        }
        drop = self._published - frozenset(self.visual.state_dict())
        load_exactly(self.visual, seen, source, drop=drop)

    def _check_activation(self, tag: str) -> None:
        """Refuse weights of a tag that was trained with the other GELU: they load and answer wrongly."""
        known = _known(self.name, tag)
        wanted = bool(known.get("quick_gelu", self.quick_gelu))
        if wanted != self.quick_gelu:
            fix = f"{self.name}-quickgelu" if wanted else self.name.removesuffix("-quickgelu")
            raise CheckpointError(f"weights {tag!r} go with {fix}, not {self.name}; change the name")


def hub_id(name: str, source: str) -> str:
    """Return the hub id, or the downloaded file, of one of open_clip's tags; other sources unchanged."""
    if Path(source).expanduser().exists():
        return source
    known = _known(name, source)
    if not known:
        return source
    if known.get("hf_hub"):
        return str(known["hf_hub"]).rstrip("/")
    return str(open_clip.download_pretrained(known))


def check_known(config: EvaClipConfig | OpenClipConfig, source: str) -> None:
    """Refuse weights that open_clip knows to be trained on other colours; see `check_colours`."""
    known = _known(config.name, source)
    if known.get("mean"):
        trained = Colours(tuple(known["mean"]), tuple(known["std"]))
        config.check_colours(config.published, trained, source)


def _known(name: str, source: str) -> dict[str, Any]:
    """Return what open_clip records of weights, by their tag or their hub id; {} where it knows nothing."""
    known: dict[str, Any] = open_clip.get_pretrained_cfg(name, source)  # in any spelling of the tag
    if known:
        return known
    tags = open_clip.list_pretrained_tags_by_model(name)
    recorded = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    return next((each for each in recorded if each.get("hf_hub", "").rstrip("/") == source), {})


def measure(config: OpenClipConfig) -> tuple[int, int]:
    """Return (width, tokens) of a tower that open_clip takes from timm."""
    name, args = _timm(config)
    return measure_trunk(name, args, config.side, keep_prefix=False)


def build(config: OpenClipConfig, facts: UnderstandingFacts) -> OpenClipTower | TimmTower:
    """Build the tower with random weights."""
    if "timm_model_name" not in config.description["vision_cfg"]:
        return OpenClipTower(config)
    name, args = _timm(config)
    return TimmTower(name, args, config)


def _timm(config: OpenClipConfig) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of a tower, as open_clip's `TimmModel` builds it."""
    vision = config.description["vision_cfg"]
    name, pool = vision["timm_model_name"], vision.get("timm_pool", "avg")
    own = {"embed_dim": config.width, "depth": config.layers, "patch_size": config.patch_size}
    args = {key: value for key, value in own.items() if value is not None}
    if config.width and config.head_width:
        args["num_heads"] = config.width // config.head_width
    projected = vision.get("timm_proj", "linear") in ("linear", "mlp")
    if not projected and pool not in ("abs_attn", "rot_attn"):
        args["global_pool"] = pool  # decides which of two final norms the tower has
    return name, arguments(name, config.side, config.channels, args)


def _of_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    sizes: Any = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
    return nn.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **sizes)
