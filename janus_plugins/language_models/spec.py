"""Declare `llama` and `causal-lm`: transformers' language models, from sizes or from a folder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from janus_plugins.core.facts import LanguageModelFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.language_models import published

Count = Annotated[int, Field(ge=1)]
Attention = Annotated[
    Literal["auto", "sdpa", "varlen", "flex"],
    Field(description="kernel of packed attention; auto: varlen on a GPU in 16 bits, else SDPA by length"),
]
Described = Annotated[
    dict[str, Any] | None,
    Field(description="what the folder's config.json says: read from there, and kept with a checkpoint"),
]
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")


class LlamaConfig(ComponentConfig):
    """Set the sizes of a Llama, or name a folder whose config.json sets them."""

    folder: str | None = Field(default=None, description="folder with a Llama's config.json")
    described: Described = None
    vocab_size: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_layers: Count | None = None
    num_heads: Count | None = None
    num_key_value_heads: Count | None = Field(default=None, description="default: num_heads")
    max_positions: Count = Field(default=16384, description="longest sequence")
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    tie: bool = Field(default=False, description="share the token embedding's weight with the text head")
    init_std: Annotated[float, Field(gt=0)] = Field(default=0.02, description="spread of random weights")
    attention: Attention = "auto"

    @model_validator(mode="after")
    def _folder_or_sizes(self) -> LlamaConfig:
        given = self.model_fields_set - {"folder", "attention", "init_std"}
        kept = self.described is not None  # of a checkpoint, which has the defaults beside it
        if self.folder is not None and given and not kept:
            raise ValueError(f"'folder' sets every size; remove {', '.join(sorted(given))}")
        missing = [name for name in _SIZES if getattr(self, name) is None]
        if self.folder is None and missing:
            raise ValueError(f"set {', '.join(missing)}, or name a 'folder' with a config.json")
        if self.folder is None:
            self._check_heads()
        elif not kept:
            object.__setattr__(self, "described", published.described_in(self.folder))
        return self

    def _check_heads(self) -> None:
        width, heads, kept = self.hidden_size, self.num_heads, self.num_key_value_heads
        assert width is not None
        assert heads is not None
        if width % heads or (width // heads) % 2:
            raise ValueError(f"hidden_size {width} must be an even multiple of num_heads {heads}")
        if kept is not None and heads % kept:
            raise ValueError(f"num_heads {heads} is not a multiple of num_key_value_heads {kept}")

    def facts(self, *neighbours: object) -> LanguageModelFacts:
        """Answer from the options, or from the folder's config.json. Needs no torch.

        Raises:
            RunFileError: the folder has no config.json of a Llama.
        """
        if self.folder is not None:
            return published.llama_facts(self.folder, self.described)
        return LanguageModelFacts(
            width=self.hidden_size or 0,
            vocab_size=self.vocab_size or 0,
            max_positions=self.max_positions,
            num_layers=self.num_layers or 0,
            num_heads=self.num_heads or 0,
            num_key_value_heads=self.num_key_value_heads or self.num_heads or 0,
            tied=self.tie,
            bidirectional=True,
        )


class CausalLmConfig(ComponentConfig):
    """Name a published causal language model; its config.json sets every size."""

    folder: str = Field(description="folder with a config.json, or hub id")
    described: Described = None
    attention: Attention = "auto"

    @model_validator(mode="after")
    def _described(self) -> CausalLmConfig:
        if self.described is None:
            object.__setattr__(self, "described", published.described_in(self.folder))
        return self

    def facts(self, *neighbours: object) -> LanguageModelFacts:
        """Answer from config.json; asks transformers (and so torch) only where a field is missing.

        Raises:
            RunFileError: there is no such folder or hub id, or its model is not a causal one.
        """
        return published.causal_facts(self.folder, self.described)


LLAMA = ComponentSpec(
    kind=Kind.LANGUAGE_MODEL,
    name="llama",
    config=LlamaConfig,
    factory="janus_plugins.language_models.model:build",
    contract=1,
    summary="Llama (transformers), from sizes or from a folder's config.json",
)

CAUSAL_LM = ComponentSpec(
    kind=Kind.LANGUAGE_MODEL,
    name="causal-lm",
    config=CausalLmConfig,
    factory="janus_plugins.language_models.model:build_causal",
    contract=1,
    summary="any causal language model of transformers, by folder or hub id",
)
