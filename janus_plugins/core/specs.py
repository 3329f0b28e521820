"""What a plugin declares: component specs and the base class of their options.

A spec is data. It names its class by an import string, so that listing and checking components
imports no torch; the class is loaded when the component is built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from janus_plugins.core.errors import PluginError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.core.kinds import Kind

CONTRACT_VERSION = 1
"""The version of the contracts in `core/contracts.py`. It rises when a plugin must change."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ComponentConfig(BaseModel):
    """Be the base of every component's options.

    Unknown options are refused, values are frozen, NaN and infinity are not numbers. A subclass
    adds the options as fields and a `facts` method whose arguments depend on the kind:

    - language model, understanding encoder, generation encoder, source: `facts()`
    - evaluation task, callback: `facts()`
    - adapter: `facts(source, model)`: the encoder's facts and the language model's
    - head: `facts(target, model)`: the generation encoder's facts (None for text) and the model's
    """

    # Built at first use: most of what is listed is not validated.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    def facts(self, *neighbours: Any) -> Any:
        """Answer what wiring needs to know, without weights. See the class's own text."""
        raise NotImplementedError(f"{type(self).__name__} does not define facts()")

    def feature_facts(self) -> UnderstandingFacts | None:
        """Answer, for a generation encoder that can also be read from, what its `features` are.

        See `core.contracts.FeaturesEncoder`. None, the default, says that it offers none.
        """
        return None

    def output_tokens(self, tokens: int) -> int:
        """Answer, for an adapter, how many tokens leave when `tokens` enter (default: as many)."""
        return tokens


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """Declare one component.

    Attributes:
        kind: what it is for.
        name: its name in YAML: lower case, digits, single hyphens.
        config: the class of its options.
        factory: "package.module:callable"; called as `factory(config, facts)`.
        contract: the contract version that the plugin was written against.
        processor: "package.module:callable" for encoders; called as `processor(config)` in data
            workers; see `core.contracts.Processor`.
        summary: one line for listings.
        requires: modules that must import for the component to work (checked when it is asked for).
        extra: how to install `requires`, e.g. "janus-plugins[eeg]".
    """

    kind: Kind
    name: str
    config: type[ComponentConfig]
    factory: str
    contract: int
    processor: str | None = None
    summary: str = ""
    requires: tuple[str, ...] = field(default=())
    extra: str = ""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise PluginError(f"component {self.kind}/{self.name}: " + "; ".join(problems))

    def _problems(self) -> Any:
        if not isinstance(self.kind, Kind):
            yield f"kind {self.kind!r} is not one of {[str(kind) for kind in Kind]}"
        if not _NAME.fullmatch(self.name):
            yield f"name {self.name!r} must be lower-case words joined by single hyphens"
        if not (isinstance(self.config, type) and issubclass(self.config, ComponentConfig)):
            yield f"config {self.config!r} must be a subclass of ComponentConfig"
        for label, target in (("factory", self.factory), ("processor", self.processor)):
            if target is not None and not _TARGET.fullmatch(target):
                yield f"{label} {target!r} must read 'package.module:callable'"
        encodes = self.kind in (Kind.UNDERSTANDING_ENCODER, Kind.GENERATION_ENCODER)
        if encodes and self.processor is None:
            yield "an encoder needs a processor"
