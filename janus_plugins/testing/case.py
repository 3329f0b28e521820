"""One component, with everything around it that a rule may need: options, facts, neighbours, items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from janus_plugins.core.catalogue import load_processor
from janus_plugins.core.errors import JanusPluginsError
from janus_plugins.core.facts import FACTS, GenerationFacts, HeadFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plan import Owner, Part
from janus_plugins.core.problems import listed, option_worded
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.model.compose import build_part
from janus_plugins.testing.items import KNOWN, cycled, stand_ins
from janus_plugins.testing.partners import PartnerCodecConfig, PartnerEncoderConfig, PartnerModelConfig
from janus_plugins.testing.report import Broken, Skipped

if TYPE_CHECKING:
    from janus_plugins.core.contracts import Arrays

OWNER = Owner("component-under-test", "0")
ENCODERS = (Kind.UNDERSTANDING_ENCODER, Kind.GENERATION_ENCODER)
NO_ITEMS = (
    "no raw items are known for modality {!r}: pass items=[...], or give the processor a method "
    "examples() that returns some"
)

Neighbour = UnderstandingFacts | GenerationFacts | None


@dataclass
class Case:
    """Hold a component as it is tried.

    Attributes:
        spec: its declaration.
        config: its validated options.
        options: the options themselves.
        path: for adapters and heads, what it is tried on; else empty.
        neighbour: for adapters the encoder's facts, for heads the target's.
        given: raw items that the caller passed.
        ranks: whether to run the slow check under two ranks.
    """

    spec: ComponentSpec
    config: ComponentConfig
    options: Mapping[str, Any]
    path: str = ""
    neighbour: Neighbour = None
    given: Sequence[object] | None = None
    ranks: bool = False
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """Return the component's kind."""
        return self.spec.kind

    @cached_property
    def facts(self) -> Any:
        """Return what the config answers to its neighbours."""
        return facts_of(self.config, self.kind, self.neighbour)

    @property
    def modality(self) -> str:
        """Return the modality of the path that the component is tried on."""
        for facts in (self.neighbour, self.facts):
            if isinstance(facts, UnderstandingFacts | GenerationFacts):
                return facts.modality
        return "thing"

    @property
    def address(self) -> str:
        """Return where the component stands in a model."""
        side = "understanding" if self.path == "features" else "generation"
        return {
            Kind.LANGUAGE_MODEL: "language_model",
            Kind.UNDERSTANDING_ENCODER: f"understanding.{self.modality}.encoder",
            Kind.GENERATION_ENCODER: f"generation.{self.modality}.encoder",
            Kind.ADAPTER: f"{side}.{self.modality}.adapter",
            Kind.HEAD: "language_model.text_head" if self.path == "text" else f"{side}.{self.modality}.head",
            Kind.SOURCE: "data.checked",
            Kind.EVALUATION_TASK: "evaluation.checked",
            Kind.CALLBACK: "callbacks.checked",
        }[self.kind]

    def build(self, seed: int = 0, device: str = "cpu") -> nn.Module:
        """Build the component, its random weights from `seed`."""
        part = Part(self.address, self.spec, OWNER, self.config, self.facts)
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            module = build_part(part)
            if self.kind == Kind.LANGUAGE_MODEL:
                _attach_head(module, self.facts)
        return module

    def processor(self) -> Any:
        """Make a new processor."""
        return load_processor(self.spec)(self.config)

    @cached_property
    def raw(self) -> list[object]:
        """Return raw items, or skip the rule where none are known."""
        examples = getattr(self.processor(), "examples", None)
        if self.given is not None:
            found = list(self.given)
        elif examples is not None:
            found = list(examples())
        elif self.modality in KNOWN:
            found = KNOWN[self.modality]()
        else:
            raise Skipped(NO_ITEMS.format(self.modality))
        if not found:
            raise Broken("at least one raw item", "an empty list of items")
        return cycled(found)

    @cached_property
    def arrays(self) -> list[Arrays]:
        """Return processed items; where no raw ones are known, variations of the dummy."""
        processor = self.processor()
        try:
            raw = self.raw
        except Skipped:
            return stand_ins(processor.dummy())
        return [processor(value) for value in raw]


def facts_of(config: ComponentConfig, kind: Kind, neighbour: Neighbour) -> Any:
    """Ask a config for its facts, beside a neighbour and the partner language model."""
    if kind in (Kind.ADAPTER, Kind.HEAD):
        return config.facts(neighbour, PartnerModelConfig().facts())
    return config.facts()


def cases(
    spec: ComponentSpec,
    options: Mapping[str, Any],
    neighbour: Neighbour = None,
    items: Sequence[object] | None = None,
    ranks: bool = False,
) -> Iterator[Case]:
    """Yield the component as it is to be tried: once, or once for each path that it serves.

    Raises:
        Broken: the options do not validate, the facts are of the wrong type, or nothing is served.
    """
    try:
        config = spec.config.model_validate(dict(options))
    except ValidationError as error:
        seen = listed(error, lambda one: option_worded(one, spec.name, spec.config))
        raise Broken("options that validate (options={...}, --set NAME=VALUE)", seen) from error
    if spec.kind not in (Kind.ADAPTER, Kind.HEAD):
        found = Case(spec, config, options, given=items, ranks=ranks)
        _check_type(found.facts, spec.kind)
        yield found
        return
    refused, served = [], False
    for path, beside in _paths(spec.kind, neighbour):
        reason = _refusal(config, spec.kind, path, beside)
        if reason:
            refused.append(f"{path}: {reason}")
        else:
            served = True
            yield Case(spec, config, options, path, beside, ranks=ranks)
    if not served:
        raise Broken("facts that fit at least one path (or pass neighbour=...)", "; ".join(refused))


def _paths(kind: Kind, neighbour: Neighbour) -> Iterator[tuple[str, Neighbour]]:
    if neighbour is not None:
        yield _path(neighbour), neighbour
        return
    if kind == Kind.ADAPTER:
        yield "features", PartnerEncoderConfig(tokens=16).facts()
    else:
        yield "text", None
    yield "codes", PartnerCodecConfig(grid=(4, 4)).facts()
    yield "codebooks", PartnerCodecConfig(grid=(4, 4), codebooks=3).facts()
    yield "latents", PartnerCodecConfig(form="latents", grid=(4, 4)).facts()


def _path(beside: UnderstandingFacts | GenerationFacts) -> str:
    """Name what an adapter or a head is tried on: codes of several codebooks are a path of their own."""
    if isinstance(beside, UnderstandingFacts):
        return "features"
    return "codebooks" if beside.codebooks > 1 else beside.form


def _refusal(config: ComponentConfig, kind: Kind, path: str, beside: Neighbour) -> str:
    """Say why a component does not serve a path, or nothing where it does."""
    try:
        facts = facts_of(config, kind, beside)
    except JanusPluginsError as error:
        return str(error)
    except Exception as error:  # a config written for one path may trip over the facts of another
        return f"facts() raised {type(error).__name__}: {error}"
    _check_type(facts, kind)
    form = facts.accepts if kind == Kind.ADAPTER else facts.predicts
    if form == "codes" and facts.codebooks > 1:
        form = "codebooks"
    return "" if form == path else f"its facts say {form}"


def _check_type(facts: object, kind: Kind) -> None:
    if not isinstance(facts, FACTS[kind]):
        raise Broken(f"facts() to return {FACTS[kind].__name__}", f"{facts!r:.200}")


def _attach_head(module: nn.Module, facts: LanguageModelFacts) -> None:
    from janus_plugins.testing.partner_models import PartnerHead

    head = PartnerHead(HeadFacts("text", facts.width, facts.vocab_size))
    module.attach_text_head(head)  # type: ignore[operator]
