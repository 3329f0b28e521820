"""Read a foreign config.json field by field: every refusal names the file, the field and the value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from janus_plugins.conversion.architecture import Llama
from janus_plugins.core.errors import CheckpointError

_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""What a Llama's config may leave out, as Janus-Pro-7B's does. Source: transformers, `LlamaConfig`."""

_LLAMA_FIXED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        CheckpointError: it is none.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds a {type(data).__name__}, not a JSON object")
    return data


class Fields:
    """Read the fields of one JSON object, with their types checked.

    Args:
        data: the object.
        where: how messages call it, e.g. "DIR/config.json: vision_config".
        defaults: values of fields that may be left out.
    """

    def __init__(
        self, data: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self._data, self.where, self._defaults = data, where, defaults or {}

    def within(self, name: str, defaults: Mapping[str, Any] | None = None) -> Fields:
        """Return the object under `name`; without one, an empty one if there are defaults."""
        value = self._data.get(name, {} if defaults is not None else None)
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{self.where}: {name} is missing or no object; is it the model's own file?"
            )
        return Fields(value, f"{self.where}: {name}", defaults)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """Return the same fields, those left out having these values."""
        return Fields(self._data, self.where, defaults)

    def __bool__(self) -> bool:
        return bool(self._data)

    def has(self, name: str) -> bool:
        """Say whether the file itself gives a field."""
        return self._data.get(name) is not None

    def integer(self, name: str) -> int:
        """Return a whole number above 0; of more than 32 bits none is a size."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise CheckpointError(
                f"{self.where}: {name} is {value!r:.60}, not a whole number above 0 and below 2^31"
            )
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers above 0."""
        value = self._get(name)
        if not isinstance(value, (list, tuple)):
            raise CheckpointError(f"{self.where}: {name} is {value!r:.60}, not a list of whole numbers")
        return tuple(
            Fields({str(index): each}, f"{self.where}: {name}").integer(str(index))
            for index, each in enumerate(value)
        )

    def number(self, name: str) -> float:
        """Return a number above 0; above 1e30 none is a setting."""
        value = self._get(name)
        kind = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not kind or not 0 < value <= 1e30:
            raise CheckpointError(f"{self.where}: {name} is {value!r:.60}, not a number from 0 to 1e30")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers above 0."""
        value = self._get(name)
        if not isinstance(value, (list, tuple)):
            raise CheckpointError(f"{self.where}: {name} is {value!r:.60}, not a list of numbers")
        return tuple(
            Fields({str(index): each}, f"{self.where}: {name}").number(str(index))
            for index, each in enumerate(value)
        )

    def truth(self, name: str) -> bool:
        """Return true or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {name} is {value!r:.60}, not true or false")
        return value

    def text(self, name: str) -> str:
        """Return text."""
        value = self._get(name)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.where}: {name} is {value!r:.60}, not text")
        return value

    def fixed(self, **wanted: Any) -> None:
        """Refuse fields with another value than the one that is supported; absent ones have their default."""
        for name, value in wanted.items():
            given = self._data.get(name)
            given = self._defaults.get(name) if given is None else given
            if given is not None and given != value:
                raise CheckpointError(f"{self.where}: {name} is {given!r:.60}; only {value!r} can be read")

    def _get(self, name: str) -> Any:
        value = self._data.get(name)
        value = self._defaults.get(name) if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where}: {name} is missing")
        return value


def read_llama(fields: Fields, untied: bool) -> Llama:
    """Return the sizes of a Llama from its config, defaults filled in.

    Args:
        fields: the config's.
        untied: whether the weights hold an output layer of their own; it then counts, whatever the config
            says (transformers' JanusConfig says tied by default, and the published weights are not).
    """
    fields = fields.with_defaults(_LLAMA_DEFAULTS)
    fields.fixed(**_LLAMA_FIXED)
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    if fields.has("head_dim"):
        fields.fixed(head_dim=hidden // heads)
    return Llama(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads")
        if fields.has("num_key_value_heads")
        else heads,
        max_positions=fields.integer("max_position_embeddings"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope_theta=_rope_theta(fields),
        tie=not untied and fields.truth("tie_word_embeddings"),
    )


def _rope_theta(fields: Fields) -> float:
    """Return the base of the rotary embedding; scaled kinds are refused.

    transformers 5 spells it `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`.
    """
    for name in ("rope_parameters", "rope_scaling"):
        if fields.has(name):
            nested = fields.within(name)
            nested.fixed(rope_type="default", type="default")
            if nested.has("rope_theta"):
                return nested.number("rope_theta")
    return fields.number("rope_theta") if fields.has("rope_theta") else 10000.0


def write_llama(llama: Llama) -> dict[str, Any]:
    """Return a Llama's config; transformers of both major versions read it."""
    return {
        "model_type": "llama",
        "vocab_size": llama.vocab_size,
        "hidden_size": llama.hidden_size,
        "intermediate_size": llama.intermediate_size,
        "num_hidden_layers": llama.num_layers,
        "num_attention_heads": llama.num_heads,
        "num_key_value_heads": llama.num_key_value_heads,
        "max_position_embeddings": llama.max_positions,
        "rms_norm_eps": llama.rms_norm_eps,
        "rope_theta": llama.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": llama.tie,
    }
