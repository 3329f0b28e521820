"""What a foreign folder's JSON files say, apart from weights: one description for both layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from janus_plugins.conversion.architecture import Architecture
from janus_plugins.conversion.reading import Fields
from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.schema import ItemTokens, TemplateBlock, TemplateName
from janus_plugins.sequence.templates import TEMPLATES, Template, resolve_template

Files = Mapping[str, str]
"""Text files of a folder, by name."""

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

TEXT_FILES = (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    PREPROCESSOR,
    PROCESSOR,
    GENERATION,
    CHAT_TEMPLATE,
    "chat_template.json",
)
"""The text files that belong to a checkpoint and travel with it."""

OLD: TemplateName = "deepseek-old"
NEW: TemplateName = "deepseek"
"""Templates of the two generations: Janus-1.3B's plain role tags, Janus-Pro's special tokens."""

DEFAULT_TOKENS = ItemTokens(begin="<begin_of_image>", end="<end_of_image>", placeholder="<image_placeholder>")


@dataclass(frozen=True)
class Pixels:
    """Hold how pictures become pixels, as a preprocessor_config.json says it."""

    image_size: int
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    min_size: int = 14


@dataclass(frozen=True)
class Description:
    """Hold what a model is.

    Attributes:
        architecture: its sizes.
        template: its chat template: a name, or one spelt out.
        tokens: the special tokens around a picture.
        pixels: how pictures are prepared for the understanding encoder.
        notes: what a user should know about how the files were read.
    """

    architecture: Architecture
    template: TemplateName | TemplateBlock
    tokens: ItemTokens
    pixels: Pixels
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def chat(self) -> Template:
        """Return the chat template's strings."""
        return resolve_template(self.template)

    @property
    def num_image_tokens(self) -> int:
        """Return the slots of one picture."""
        return self.architecture.vision.side**2


def open_tokenizer(files: Files, where: str) -> Tokenizer:
    """Return the tokenizer of a folder's tokenizer.json.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if TOKENIZER not in files:
        raise CheckpointError(f"{where} has no {TOKENIZER}; copy the model's tokenizer files too")
    try:
        return Tokenizer.from_str(files[TOKENIZER])
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{where}/{TOKENIZER} cannot be read: {error}") from error


def check_tokens(
    tokenizer: Tokenizer, template: TemplateName | TemplateBlock, tokens: ItemTokens, where: str
) -> None:
    """Refuse a tokenizer that lacks a token which the model's sequences need, by string.

    The placeholder alone may be missing: it stands for slots and never reaches the model; the official
    code adds it as well.
    """
    chat = resolve_template(template)
    missing = [
        token
        for token in (chat.bos, chat.eos, chat.pad, tokens.begin, tokens.end)
        if tokenizer.token_to_id(token) is None
    ]
    if missing:
        names = ", ".join(map(repr, missing))
        raise CheckpointError(f"{where}/{TOKENIZER} has no token {names}; is it this model's own tokenizer?")


def template_by_tokens(tokenizer: Tokenizer) -> TemplateName:
    """Tell the two generations apart: only Janus-Pro's tokenizer has its role tags as tokens."""
    return NEW if tokenizer.token_to_id(TEMPLATES[NEW].user) is not None else OLD


def read_pixels(fields: Fields, image_size: int) -> Pixels:
    """Return how pictures are prepared, refusing what the understanding encoder does not do.

    Args:
        fields: the preprocessor's, its own defaults filled in.
        image_size: side of the picture as that file gives it.
    """
    ours = Pixels(image_size)
    pixels = Pixels(
        image_size,
        fields.numbers("image_mean"),
        fields.numbers("image_std"),
        fields.number("rescale_factor"),
        fields.truth("do_normalize"),
        fields.integer("min_size"),
    )
    # The mean also colours the padding, so it counts where nothing is normalised.
    names = ("image_mean", "image_std") if pixels.do_normalize else ("image_mean",)
    for name in names:
        wanted = getattr(ours, name)
        if getattr(pixels, name) != wanted:
            raise CheckpointError(
                f"{fields.where}: {name} is {getattr(pixels, name)}, siglip's pictures have {wanted}"
            )
    if abs(pixels.rescale_factor * 255 - 1) > 1e-6 or pixels.min_size != ours.min_size:
        raise CheckpointError(
            f"{fields.where}: rescale_factor {pixels.rescale_factor} and min_size {pixels.min_size} should "
            f"be {ours.rescale_factor} and {ours.min_size}"
        )
    return pixels


NOT_NORMALISED = (
    "preprocessor_config.json says do_normalize: false, as Janus-1.3B did by mistake until 2024-11-14 (red "
    "pictures were answered 'pink'): the model sees pixels in [0, 1], as the official code would show them; "
    "say true there to normalise as later revisions do"
)


def dump(data: Any) -> str:
    """Write a JSON file's text."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
