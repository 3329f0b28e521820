"""A timm backbone without its head: pictures to tokens, and weights in timm's layouts."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.suggest import nearest
from janus_plugins.core.tiles import read_tiles
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.towers.options import Colours
from janus_plugins.encoders.towers.timm_spec import TimmConfig

if TYPE_CHECKING:
    from janus_plugins.encoders.towers.eva_spec import EvaClipConfig
    from janus_plugins.encoders.towers.open_clip_spec import OpenClipConfig

_PREFIXES = ("", "visual.trunk.", "visual.")
"""What stands before a tower's names in timm's own files, in open_clip's, and in EVA-CLIP's."""


def published(name: str) -> PretrainedCfg:
    """Return what timm records of a model: input size, mean, spread.

    Raises:
        RunFileError: timm does not know the name; with the nearest one.
    """
    found = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if found is None:
        raise RunFileError(
            f"timm {timm.__version__} has no model {name!r}.{nearest(name, timm.list_models())} "
            "timm.list_models('*vit*') lists names"
        )
    return found


def arguments(name: str, image_size: int | None, channels: int, args: dict[str, Any]) -> dict[str, Any]:
    """Return what a trunk is constructed with. Only models of a fixed input size take `img_size`."""
    fixed = published(name).fixed_input_size
    sized = {"img_size": image_size} if fixed and image_size else {}
    return {"in_chans": channels, **sized, **args}


def make_trunk(name: str, args: dict[str, Any]) -> nn.Module:
    """Build a backbone of random weights whose `forward` returns all its last features.

    The head is taken off after building, so that the final norm stays the published one.

    Raises:
        RunFileError: timm cannot build it with these arguments.
    """
    try:
        trunk: Any = timm.create_model(name, pretrained=False, num_classes=0, **args)
        trunk.reset_classifier(0, global_pool="")
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
        raise RunFileError(f"timm cannot build {name} with {args} and no head: {error}") from error
    return cast(nn.Module, trunk)


def num_prefix(trunk: nn.Module) -> int:
    """Return how many class and register tokens stand before the patches."""
    stated = getattr(trunk, "num_prefix_tokens", None)
    return int(hasattr(trunk, "cls_token") if stated is None else stated)


def as_tokens(features: Tensor, trunk: nn.Module, keep_prefix: bool) -> Tensor:
    """Return a trunk's features as tokens [N, T, C], row-major, whatever its own format is."""
    if features.ndim == 4:
        if getattr(trunk, "output_fmt", "NCHW") == "NCHW":
            features = features.permute(0, 2, 3, 1)
        return features.flatten(1, 2)
    return features if keep_prefix else features[:, num_prefix(trunk) :]


class TimmTower(nn.Module):
    """Turn pictures [N, C, S, S], or tiles [N, tiles, C, S, S], into tokens [N, T, width].

    Args:
        name: timm's model name.
        args: arguments of timm's constructor.
        config: the options. Those of open_clip's models let its tags name weights too.
        keep_prefix: whether class and register tokens stay.
    """

    def __init__(
        self,
        name: str,
        args: dict[str, Any],
        config: TimmConfig | EvaClipConfig | OpenClipConfig,
        keep_prefix: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.args, self.config, self.keep_prefix = name, args, config, keep_prefix
        self.trunk = make_trunk(name, args)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        """Return tokens [N, T, width] of {"pixels"}, and of "pixels_lengths" tiles where they vary."""
        return read_tiles(items, self._read)

    def _read(self, pixels: Tensor) -> Tensor:
        features = self.trunk(pixels.to(next(self.trunk.parameters()).dtype))
        return as_tokens(features, self.trunk, self.keep_prefix)

    def compile_blocks(self) -> None:
        """Let `torch.compile` fuse each block, of the trunks that keep theirs in `blocks`."""
        for block in getattr(self.trunk, "blocks", ()):
            block.compile(dynamic=True)

    def load_weights(self, source: str) -> None:
        """Load weights from a file, a folder, a hub id, or one of timm's tags ("augreg_in21k").

        timm's own conversion runs, which knows the layouts that were published for the architecture
        (EVA-CLIP's and open_clip's among them) and resamples positions where the size differs. The
        head's weights are left out; everything else must be there.

        Raises:
            CheckpointError: nothing there, keys or shapes that do not fit, or other colours.
        """
        tagged = f"{self.name}.{source}"
        if not isinstance(self.config, TimmConfig):
            from janus_plugins.encoders.towers.open_clip_tower import check_known, hub_id

            check_known(self.config, source)
            source = hub_id(self.config.name, source)
        tags = timm.list_pretrained(self.name)
        if not Path(source).expanduser().exists() and tagged in tags:
            source = f"timm/{tagged}"
        trained = source.removeprefix("timm/")
        if isinstance(self.config, TimmConfig) and trained in tags:
            name = self.config.name
            self.config.check_colours(published_colours(name), published_colours(trained), source)
        load_trunk(self.trunk, self.name, self.args, read_weights(source), source)


def load_trunk(
    trunk: nn.Module, name: str, args: dict[str, Any], tensors: dict[str, Tensor], source: str
) -> None:
    """Fill a trunk from published tensors, by timm's own conversion.

    Raises:
        CheckpointError: keys or shapes do not fit.
    """
    with torch.device("meta"):
        whole, headless = timm.create_model(name, **args), timm.create_model(name, num_classes=0, **args)
    head = whole.state_dict().keys() - headless.state_dict().keys()
    for part in _PREFIXES:
        tensors = {key: each for key, each in tensors.items() if key.removeprefix(part) not in head}
    overlay = {"state_dict": tensors, "classifier": None, "source": "", "custom_load": False}
    try:
        with torch.random.fork_rng(devices=[]):
            filled: Any = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **args
            )
        filled.reset_classifier(0, global_pool="")
    except (RuntimeError, KeyError, AttributeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"{source!r} does not fit {name}: {error}") from error
    load_exactly(trunk, filled.state_dict(), source)


def measure(config: TimmConfig) -> tuple[int, int]:
    """Return (width, tokens) of the backbone that the options name.

    Raises:
        RunFileError: timm has no such model, or cannot build it with these options.
    """
    args = arguments(config.name, config.image_size, config.channels, config.args)
    size = config.image_size or published_size(config.name)
    return measure_trunk(config.name, args, size, config.keep_prefix)


def measure_trunk(name: str, args: dict[str, Any], size: int, keep_prefix: bool) -> tuple[int, int]:
    """Return (width, tokens) of a backbone, built and run on the meta device.

    Raises:
        RunFileError: timm cannot build it, or it cannot read pictures of `size` pixels.
    """
    return _measured(name, json.dumps(args), size, keep_prefix)


def published_colours(name: str) -> Colours:
    """Return the mean and spread that a backbone, or its weights of a tag, were trained with."""
    found = published(name)
    mean, std = tuple(found.mean), tuple(found.std)
    return Colours(mean, std)


def published_size(name: str) -> int:
    """Return the side in pixels of the pictures that a backbone was published for."""
    return int(published(name).input_size[-1])


@lru_cache(maxsize=64)
def _measured(name: str, args: str, size: int, keep_prefix: bool) -> tuple[int, int]:
    given = json.loads(args)
    with torch.device("meta"), torch.no_grad():
        trunk = make_trunk(name, given).eval()
        try:
            features = trunk(torch.zeros(1, given["in_chans"], size, size))
        except (RuntimeError, AssertionError) as error:
            raise RunFileError(f"{name} cannot read pictures of {size} pixels: {error}") from error
        if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
            raise RunFileError(f"{name} gives no map or line of features without its head; name another")
        tokens = as_tokens(features, trunk, keep_prefix)
    return tokens.shape[2], tokens.shape[1]


def build(config: TimmConfig, facts: UnderstandingFacts) -> TimmTower:
    """Build the backbone with random weights.

    Raises:
        RunFileError: timm has no such model, or it makes other tokens than the options state.
    """
    width, tokens = measure(config)
    if config.seen(width, tokens) != facts:
        raise RunFileError(
            f"{config.name} makes {tokens} tokens of width {width}, but the options state "
            f"{config.tokens} of width {config.width}; correct them, or leave them out"
        )
    args = arguments(config.name, config.image_size, config.channels, config.args)
    return TimmTower(config.name, args, config, config.keep_prefix)


def build_eva(config: EvaClipConfig, facts: UnderstandingFacts) -> TimmTower:
    """Build an EVA-CLIP tower with random weights."""
    args = arguments(config.timm_name, config.image_size, config.channels, config.sizes)
    return TimmTower(config.timm_name, args, config)
