"""The run's own text, for a tokenizer that is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from janus_plugins.core.blame import blamed
from janus_plugins.core.errors import DataError
from janus_plugins.core.plan import RunPlan
from janus_plugins.data.sources import is_streaming, open_source, readable
from janus_plugins.sequence.templates import resolve_template

__all__ = ["open_source", "run_texts"]


def run_texts(plan: RunPlan) -> Iterator[str]:
    """Yield every text of the train sources, and the chat template's own.

    A source that offers `texts()` is asked for them; of another one every sample is read.

    Raises:
        DataError: a source that is read in order offers no `texts()`.
    """
    yield from resolve_template(plan.run.model.language_model.template).strings()
    for name, data in plan.data.items():
        if data.block.split == "train":
            source = open_source(data.part)
            with blamed(data.part, "giving its texts"):
                yield from _texts(name, source)


def _texts(name: str, source: Any) -> Iterator[str]:
    if hasattr(source, "texts"):
        yield from source.texts()
    elif is_streaming(source):
        raise DataError(
            f"data.{name} is read in order and offers no texts(), so no tokenizer can be trained on it; "
            "use a tokenizer of type bytes or pretrained, or turn streaming off"
        )
    else:
        for sample in readable(source):
            yield from (part for turn in sample.turns for part in turn.parts if isinstance(part, str))
