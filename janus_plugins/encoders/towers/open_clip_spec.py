"""Declare `open-clip`: the image tower of any model that open_clip describes, by name."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from janus_plugins.core.errors import PluginError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.core.suggest import nearest
from janus_plugins.encoders.towers.options import CLIP, Colours, Count, PictureConfig

_QUERIES = 256
"""Queries of CoCa's attentional pooling where a model's config does not say (open_clip, `CLIPVisionCfg`)."""

_HALVES = Colours((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = Colours((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PLAIN = Colours((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_OTHERS = {
    "MobileCLIP-B": _PLAIN,
    "MobileCLIP-S1": _PLAIN,
    "MobileCLIP-S2": _PLAIN,
    "MobileCLIP2-B": _PLAIN,
    "MobileCLIP2-S0": _PLAIN,
    "MobileCLIP2-S2": _PLAIN,
    "PE-Core-B-16": _HALVES,
    "PE-Core-L-14-336": _HALVES,
    "PE-Core-S-16-384": _HALVES,
    "PE-Core-T-16-384": _HALVES,
    "PE-Core-bigG-14-448": _HALVES,
    "ViT-H-14-CLIPA": _IMAGENET,
    "ViT-H-14-CLIPA-336": _IMAGENET,
    "ViT-L-14-CLIPA": _IMAGENET,
    "ViT-L-14-CLIPA-336": _IMAGENET,
    "ViT-bigG-14-CLIPA": _IMAGENET,
    "ViT-bigG-14-CLIPA-336": _IMAGENET,
}
"""Models whose every published weights were trained with neither CLIP's nor SigLIP's colours. open_clip keeps
them with the weights, not with the model's description, and knows them only once torch is imported."""


@lru_cache(maxsize=1)
def descriptions() -> dict[str, Path]:
    """Return the JSON file of each model that the installed open_clip describes; imports nothing.

    Raises:
        PluginError: open_clip is not installed.
    """
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise PluginError("open-clip needs module 'open_clip'; next: pip install open-clip-torch")
    folder = Path(found.submodule_search_locations[0]) / "model_configs"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


class OpenClipConfig(PictureConfig):
    """Name a model of open_clip; its image tower's last tokens are the features.

    For towers that open_clip takes from timm the facts are measured on the meta device, which imports
    timm (some seconds); for all others nothing is imported.

    Weights: a file or folder in open_clip's layout, a hub id, or one of open_clip's tags ("openai").
    """

    name: str = Field(description="open_clip's model name, e.g. ViT-L-14-336-quickgelu")
    width: Count | None = None
    layers: Count | None = None
    head_width: Count | None = None
    patch_size: Count | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in descriptions():
            raise ValueError(f"open_clip describes no model {name!r}.{nearest(name, descriptions())}")
        return name

    @staticmethod
    def tiny() -> dict[str, Any]:
        """Return options small enough for a test."""
        return {
            "name": "ViT-B-16",
            "image_size": 16,
            "width": 16,
            "layers": 2,
            "head_width": 8,
            "patch_size": 4,
        }

    @property
    def description(self) -> dict[str, Any]:
        """Return open_clip's description of the model, the options' sizes in it."""
        described: dict[str, Any] = json.loads(descriptions()[self.name].read_text(encoding="utf-8"))
        names = ("image_size", "width", "layers", "head_width", "patch_size")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**described, "vision_cfg": {**described["vision_cfg"], **own}}

    @property
    def side(self) -> int:
        """Return the side of the picture in pixels."""
        return int(self.description["vision_cfg"].get("image_size", 224))

    @property
    def published(self) -> Colours:
        """Return the colours that the model's weights were trained with; see `check_colours` for the rest."""
        # Only SigLIP's descriptions start their loss with a bias.
        usual = _HALVES if "init_logit_bias" in self.description else CLIP
        return _OTHERS.get(self.name, usual)

    def facts(self, *neighbours: object) -> UnderstandingFacts:
        """Answer from open_clip's description of the model.

        Raises:
            RunFileError: timm cannot build the tower.
        """
        described = self.description
        vision = described["vision_cfg"]
        if "timm_model_name" in vision:
            from janus_plugins.encoders.towers.open_clip_tower import measure

            width, tokens = measure(self)
        elif isinstance(vision.get("layers", 12), list):
            width, tokens = vision["width"] * 32, (self.side // 32) ** 2
        elif vision.get("attentional_pool"):
            width, tokens = described["embed_dim"], vision.get("attn_pooler_queries", _QUERIES) - 1
        else:
            width, tokens = vision.get("width", 768), (self.side // vision.get("patch_size", 16)) ** 2
        return self.seen(width, tokens)


OPEN_CLIP = ComponentSpec(
    kind=Kind.UNDERSTANDING_ENCODER,
    name="open-clip",
    config=OpenClipConfig,
    factory="janus_plugins.encoders.towers.open_clip_tower:build",
    contract=1,
    processor="janus_plugins.encoders.towers.processor:ClipProcessor",
    summary="image tower of any open_clip model, by name: picture -> patch features",
    requires=("open_clip", "timm"),
)
