"""A chat template as Jinja text, for transformers. Ours are strings; see `sequence/templates.py`."""

from __future__ import annotations

import json

from janus_plugins.core.schema import ItemTokens
from janus_plugins.sequence.templates import AFTER_ITEM, Template

_JINJA = """\
{%- set user, assistant, separator, eos, image, after_image = VALUES -%}
{%- for message in messages -%}
{%- set role = message['role']|lower -%}
{%- if message['content'] is string -%}
{%- set parts = [{'type': 'text', 'text': message['content']}] -%}
{%- else -%}
{%- set parts = message['content'] -%}
{%- endif -%}
{%- set empty = role in ['user', 'assistant'] and not parts|rejectattr('type', 'equalto', 'text')|list
    and not parts|map(attribute='text')|join|trim -%}
{%- if role == 'user' -%}{{ user + (':' if empty else ': ') }}
{%- elif role == 'assistant' -%}{{ assistant + (':' if empty else ': ') }}
{%- endif -%}
{%- for part in ([] if empty else parts) -%}
{%- if part['type'] == 'image' -%}{{ image }}
{%- else -%}
{%- set text = part['text'] -%}
{%- if loop.first -%}{%- set text = text.lstrip() -%}{%- endif -%}
{%- if loop.last -%}{%- set text = text.rstrip() -%}{%- endif -%}
{%- if not loop.first and parts[loop.index0 - 1]['type'] == 'image'
    and text and not text.startswith(after_image) -%}
{{ after_image }}
{%- endif -%}
{{ text }}
{%- endif -%}
{%- endfor -%}
{%- if not empty -%}{{ eos if role == 'assistant' else separator }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ assistant + ':' }}{%- endif -%}
"""
"""As the official code joins turns: a user's ends in the separator, an assistant's in EOS, an empty one in
nothing."""


def chat_template(template: Template, tokens: ItemTokens) -> str:
    """Return the Jinja text that lays conversations out as `template` does."""
    values = (
        template.user,
        template.assistant,
        template.separator,
        template.eos,
        tokens.placeholder,
        AFTER_ITEM,
    )
    spelt = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
    return _JINJA.replace("VALUES", f"({spelt})")
