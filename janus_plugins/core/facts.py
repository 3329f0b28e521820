"""Facts: what a component's config can answer before a weight exists.

Wiring is checked from these alone, so that a run file that cannot work is refused in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from janus_plugins.core.kinds import Kind

CodeForm = Literal["codes", "latents"]
"""How a generated item crosses the model: integer codes [T] or [T, Q], or continuous latents [T, C]."""

AdapterInput = Literal["features", "codes", "latents"]


@dataclass(frozen=True)
class LanguageModelFacts:
    """Describe a language model.

    Attributes:
        width: size of a token embedding and of a hidden state (M).
        vocab_size: rows of the token embedding; a tokenizer may use fewer.
        max_positions: longest sequence that the model's positions can tell apart.
        num_layers: decoder blocks.
        num_heads: attention heads of a block (queries).
        num_key_value_heads: heads whose keys and values are kept in the cache.
        tied: whether the text head shares the token embedding's weight.
        bidirectional: whether slots see later ones where a plan says so (`Packed.reach`, `Cached.block`);
            without it a generation path cannot predict several codes at once.
    """

    width: int
    vocab_size: int
    max_positions: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    tied: bool = False
    bidirectional: bool = False


@dataclass(frozen=True)
class UnderstandingFacts:
    """Describe an understanding encoder: item -> features [T, width].

    Attributes:
        modality: what it reads ("image", "audio", ...).
        width: size of one feature vector.
        tokens: feature vectors of one item, or None when the item decides.
        max_tokens: most feature vectors of one item (equal to `tokens` where that is fixed).
    """

    modality: str
    width: int
    tokens: int | None
    max_tokens: int

    def __post_init__(self) -> None:
        _positive(self, "width", "tokens", "max_tokens")
        if self.tokens is not None and self.tokens != self.max_tokens:
            raise ValueError(f"tokens is {self.tokens} and max_tokens {self.max_tokens}; they must be equal")


@dataclass(frozen=True)
class GenerationFacts:
    """Describe a generation encoder: item -> codes [T] or [T, Q], or latents [T, width], and back.

    Attributes:
        modality: what it writes ("image", "audio", ...).
        form: "codes" or "latents".
        tokens: slots of one item (T), each a code, a frame of codes or a latent.
        width: size of one code's vector in the codebook, or of one latent.
        codebook_size: number of distinct codes (of each codebook); None for latents.
        grid: how the T tokens lie, row-major; the product is T.
        codebooks: codes of one slot (Q), as of a residual quantizer, coarse to fine, each in
            [0, codebook_size). With one, items are [T]; with more, [T, Q].
    """

    modality: str
    form: CodeForm
    tokens: int
    width: int
    codebook_size: int | None
    grid: tuple[int, ...]
    codebooks: int = 1

    def __post_init__(self) -> None:
        _positive(self, "width", "tokens", "codebook_size", "codebooks")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one item: [T], [T, Q] or [T, width]."""
        if self.form == "latents":
            return (self.tokens, self.width)
        return (self.tokens,) if self.codebooks == 1 else (self.tokens, self.codebooks)


@dataclass(frozen=True)
class AdapterFacts:
    """Describe an adapter between an encoder and the language model.

    Attributes:
        accepts: "features" [N, T, in_width], "codes" [N, T] or [N, T, Q], or "latents" [N, T, in_width].
        in_width: width that it reads (for codes: of its table's vectors).
        out_width: width that it writes; must be the language model's.
        codebook_size: rows of the code table (of each), for codes.
        codebooks: codes of one slot that it reads (Q).
    """

    accepts: AdapterInput
    in_width: int
    out_width: int
    codebook_size: int | None = None
    codebooks: int = 1


@dataclass(frozen=True)
class HeadFacts:
    """Describe a head on the language model's hidden states.

    Attributes:
        predicts: "text", "codes" or "latents".
        in_width: width of the hidden states that it reads.
        size: number of classes (of each codebook), or width of a latent.
        codebooks: codes of one position that it answers for (Q).
    """

    predicts: Literal["text", "codes", "latents"]
    in_width: int
    size: int
    codebooks: int = 1


@dataclass(frozen=True)
class SourceFacts:
    """Describe a data source.

    Attributes:
        tasks: the tasks ("text", "understanding", "generation", "interleaved") its samples serve.
        understanding: modalities that its samples show to the model.
        generation: modalities that its samples ask the model to make.
    """

    tasks: frozenset[str]
    understanding: frozenset[str] = frozenset()
    generation: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("tasks", "understanding", "generation"):
            if not isinstance(value := getattr(self, name), frozenset | set):
                raise TypeError(f"{name} is {value!r}; it must be a set of names, as frozenset({{'image'}})")


@dataclass(frozen=True)
class EvaluationFacts:
    """Describe an evaluation task.

    Attributes:
        tasks: the tasks ("text", "understanding", "generation", "interleaved") whose samples it scores.
        sources: names of further data entries that it reads.
        sampling: `guidance` and `temperature` that it generates with, for the pictures beside its score.
    """

    tasks: frozenset[str]
    sources: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CallbackFacts:
    """Describe a training callback.

    Attributes:
        stages: names of stages that its options speak of.
    """

    stages: tuple[str, ...] = ()


FACTS: Mapping[Kind, type] = {
    Kind.LANGUAGE_MODEL: LanguageModelFacts,
    Kind.UNDERSTANDING_ENCODER: UnderstandingFacts,
    Kind.GENERATION_ENCODER: GenerationFacts,
    Kind.ADAPTER: AdapterFacts,
    Kind.HEAD: HeadFacts,
    Kind.SOURCE: SourceFacts,
    Kind.EVALUATION_TASK: EvaluationFacts,
    Kind.CALLBACK: CallbackFacts,
}
"""What the options of a component answer, by its kind."""


def _positive(facts: object, *names: str) -> None:
    """Refuse counts below 1; None stands for one that is not known."""
    for name in names:
        value = getattr(facts, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1 (do the options leave nothing?)")
