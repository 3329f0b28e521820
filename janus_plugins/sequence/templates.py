"""Chat templates: the strings that separate roles, and the special tokens of a model.

The formats are those of the official Janus code (`janus/utils/conversation.py`): a turn is
`role + ": " + text + end`, where a user's turn ends with the separator and an assistant's with EOS;
a turn still to be written, or an empty one, is `role + ":"`; BOS comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from janus_plugins.core.schema import TemplateBlock, TemplateName

if TYPE_CHECKING:
    from janus_plugins.core.schema import ModelBlock

AFTER_ITEM = "\n"
"""Between an item and the text that follows it in a turn; as in the official prompts."""

_DEEPSEEK_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class Template:
    """Hold the strings of a chat format.

    Attributes:
        user: the user's role tag.
        assistant: the assistant's role tag.
        separator: ends a user's turn and the system prompt.
        system: system prompt where something is understood; generation has none.
        bos: special token that begins every sequence.
        eos: special token that ends an assistant's turn.
        pad: special token of padding, and of a dropped prompt.
    """

    user: str
    assistant: str
    separator: str
    system: str
    bos: str
    eos: str
    pad: str

    def strings(self) -> Iterator[str]:
        """Yield the ordinary text that the template itself brings, for a tokenizer to learn."""
        yield f"{self.user}: {self.separator}{self.assistant}:{AFTER_ITEM}"
        if self.system:
            yield self.system


def _deepseek(user: str, assistant: str) -> Template:
    return Template(
        user=user,
        assistant=assistant,
        separator="\n\n",
        system=_DEEPSEEK_SYSTEM,
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        pad="<｜▁pad▁｜>",
    )


TEMPLATES: dict[TemplateName, Template] = {
    "deepseek-old": _deepseek("User", "Assistant"),
    "deepseek": _deepseek("<|User|>", "<|Assistant|>"),
    "plain": Template(user="Q", assistant="A", separator="\n", system="", bos="<s>", eos="</s>", pad="<pad>"),
}
"""Named templates: Janus-1.3B's, Janus-Pro's, and a short one for small tokenizers of one's own."""


def resolve_template(value: TemplateName | TemplateBlock) -> Template:
    """Return the template that a run file names or spells out."""
    return Template(**value.model_dump()) if isinstance(value, TemplateBlock) else TEMPLATES[value]


def special_tokens(model: ModelBlock) -> tuple[str, ...]:
    """Return the special tokens of a model: bos, eos, pad, then those around each modality's items."""
    template = resolve_template(model.language_model.template)
    tokens = [template.bos, template.eos, template.pad]
    for modality in model.modalities():
        around = model.item_tokens(modality)
        tokens += [around.begin, around.end, around.placeholder]
    return tuple(tokens)
