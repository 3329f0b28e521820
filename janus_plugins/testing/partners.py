"""Tiny partners for a component under test: a language model, encoders, an adapter and heads.

Declared the way a plugin declares its own, so that a component is tried inside a model that is
composed by the ordinary wiring and composition. Imports no torch.
"""

from __future__ import annotations

from typing import Any

from janus_plugins.core.facts import (
    AdapterFacts,
    CodeForm,
    GenerationFacts,
    HeadFacts,
    LanguageModelFacts,
    UnderstandingFacts,
)
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentConfig, ComponentSpec

NUMBERS = 64
"""Numbers that the partners' processor makes of any item."""


class PartnerModelConfig(ComponentConfig):
    """Set the partner language model."""

    vocab_size: int = 64
    width: int = 32
    max_positions: int = 256

    def facts(self, *neighbours: Any) -> LanguageModelFacts:
        """Answer one layer with one head."""
        return LanguageModelFacts(
            width=self.width,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
            num_layers=1,
            num_heads=1,
            num_key_value_heads=1,
            bidirectional=True,
        )


class PartnerEncoderConfig(ComponentConfig):
    """Set the partner understanding encoder."""

    modality: str = "thing"
    tokens: int = 4
    width: int = 12

    def facts(self, *neighbours: Any) -> UnderstandingFacts:
        """Answer a fixed number of tokens."""
        return UnderstandingFacts(self.modality, self.width, self.tokens, self.tokens)


class PartnerCodecConfig(ComponentConfig):
    """Set the partner generation encoder."""

    modality: str = "thing"
    form: CodeForm = "codes"
    grid: tuple[int, ...] = (2, 2)
    width: int = 6
    codebook_size: int | None = 16
    codebooks: int = 1

    def facts(self, *neighbours: Any) -> GenerationFacts:
        """Answer codes or latents on the grid."""
        tokens = 1
        for side in self.grid:
            tokens *= side
        size = self.codebook_size if self.form == "codes" else None
        return GenerationFacts(self.modality, self.form, tokens, self.width, size, self.grid, self.codebooks)


class PartnerAdapterConfig(ComponentConfig):
    """Fit any encoder: a linear layer, with a table in front of it for codes, summed over a slot's."""

    def facts(self, *neighbours: Any) -> AdapterFacts:
        """Answer for `facts(source, model)`."""
        source, model = neighbours
        form = source.form if isinstance(source, GenerationFacts) else "features"
        size, several = getattr(source, "codebook_size", None), getattr(source, "codebooks", 1)
        return AdapterFacts(form, source.width, model.width, size, several)


class PartnerHeadConfig(ComponentConfig):
    """Fit any target: a linear layer to classes, of each codebook its own, or to a latent."""

    def facts(self, *neighbours: Any) -> HeadFacts:
        """Answer for `facts(target, model)`."""
        target, model = neighbours
        if target is None:
            return HeadFacts("text", model.width, model.vocab_size)
        size = target.codebook_size if target.form == "codes" else target.width
        return HeadFacts(target.form, model.width, size, target.codebooks)


def _spec(kind: Kind, config: type[ComponentConfig], processor: str | None = None) -> ComponentSpec:
    return ComponentSpec(
        kind=kind,
        name="partner",
        config=config,
        factory=f"janus_plugins.testing.partner_models:build_{kind}",
        contract=CONTRACT_VERSION,
        processor=processor,
        summary="tiny partner of the conformance kit",
    )


_PROCESSOR = "janus_plugins.testing.partner_processor:PartnerProcessor"

PICTURES = ComponentSpec(
    kind=Kind.GENERATION_ENCODER,
    name="partner-pictures",
    config=PartnerCodecConfig,
    factory="janus_plugins.testing.partner_models:build_pictures",
    contract=CONTRACT_VERSION,
    processor="janus_plugins.testing.partner_processor:build_pictures",
    summary="makes pictures, for evaluation tasks under test",
)

PARTNERS = (
    _spec(Kind.LANGUAGE_MODEL, PartnerModelConfig),
    _spec(Kind.UNDERSTANDING_ENCODER, PartnerEncoderConfig, _PROCESSOR),
    _spec(Kind.GENERATION_ENCODER, PartnerCodecConfig, _PROCESSOR),
    _spec(Kind.ADAPTER, PartnerAdapterConfig),
    _spec(Kind.HEAD, PartnerHeadConfig),
)
"""One partner of every kind that a model needs; all are called `partner`."""
