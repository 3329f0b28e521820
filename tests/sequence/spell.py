"""A spelling for tests: bytes, so that every id can be read."""

from __future__ import annotations

from collections.abc import Iterable

from janus_plugins.core.schema import ModelBlock, StageBlock
from janus_plugins.sequence.line import Spelling
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import build_tokenizer


def model_block(template: str) -> ModelBlock:
    part = {"use": "toy"}
    return ModelBlock.model_validate(
        {
            "language_model": {**part, "tokenizer": {"type": "bytes"}, "template": template},
            "understanding": {"image": {"encoder": part, "adapter": part}},
            "generation": {"image": {"encoder": part, "adapter": part, "head": part}},
        }
    )


def spelling(template: str = "deepseek-old") -> Spelling:
    block = model_block(template)
    tokenizer = build_tokenizer(block.language_model.tokenizer, special_tokens(block))
    return Spelling.of(block, tokenizer)


def stage(**options: object) -> StageBlock:
    base = {"name": "s", "learn": {"x": 1.0}, "steps": 1, "batch": 1, "mix": {"text": 1}, "max_length": 600}
    return StageBlock.model_validate({**base, **options})


def read(ids: Iterable[int], spelled: Spelling) -> str:
    """Return the string that ids stand for; special tokens shortened to <bos>, <eos>, <pad>, <b>, <e>."""
    tokenizer, template = spelled.tokenizer, spelled.template
    around = spelled.tokens_of("image")
    names = {
        template.bos: "<bos>",
        template.eos: "<eos>",
        template.pad: "_",
        around.begin: "<b>",
        around.end: "<e>",
    }
    short = {tokenizer.id_of(token): name for token, name in names.items()}
    return "".join(short.get(int(one)) or tokenizer.decode([int(one)]) for one in ids)
