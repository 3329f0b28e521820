"""Several codes a run of the language model, for models trained code by code: what it takes, and which way.

"jacobi" keeps the distribution of the codes; "zigzag" does not, and says so in what it measures
(benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.plan import Part
from janus_plugins.inference.blaming import blamed_in_step
from janus_plugins.inference.codes import CodeEmbedder
from janus_plugins.inference.jacobi import jacobi_codes
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.stream import Stream
from janus_plugins.inference.zigzag import zigzag_codes

Decoding = Literal["steps", "jacobi", "zigzag"]
DECODINGS: tuple[str, ...] = get_args(Decoding)

_JACOBI_WINDOW = 16


@dataclass(frozen=True)
class Ahead:
    """Decode more than one code a run.

    Attributes:
        language_model: see `core.contracts.LanguageModel`.
        head: the generation head.
        embedder: of codes.
        facts: the generation encoder's.
        window: codes a run may decide (jacobi), or by which a row stays behind the one above (zigzag);
            None: 16, or half a row.
        part: whose fault it is where the head fails.
    """

    language_model: nn.Module
    head: nn.Module
    embedder: CodeEmbedder
    facts: GenerationFacts
    window: int | None
    part: Part

    @property
    def room(self) -> int:
        """Return how many slots may follow a prompt."""
        return self.facts.tokens + (self.facts.grid[0] if len(self.facts.grid) == 2 else 0)

    def check(self, decoding: str, compile: bool) -> None:
        """Refuse what this model's parts cannot do, and settings that exclude one another."""
        option = f"decoding={decoding!r}"
        if compile:
            raise RunFileError(f"{option} takes runs of different sizes, which compile cannot; choose one")
        self.embedder.check_alike(option)
        if self.facts.form != "codes":
            raise RunFileError(f"{option} needs codes, but this path makes latents; leave it out")
        if decoding == "jacobi" and not hasattr(self.head, "distribution"):
            raise RunFileError(
                f"{option} needs a head that tells its distribution, and {type(self.head).__name__} has no "
                "distribution(); leave it out"
            )
        if decoding == "zigzag" and len(self.facts.grid) != 2:
            raise RunFileError(f"{option} needs codes on a grid of rows, not {self.facts.grid}; leave it out")
        if decoding == "zigzag" and not getattr(self.language_model, "free_masks", False):
            raise RunFileError(
                f"{option} needs a language model that takes any mask (free_masks = True), which "
                f"{type(self.language_model).__name__} does not; leave it out"
            )

    def jacobi(self, stream: Stream, guidance: float, temperature: float, draws: SeededDraws) -> Tensor:
        """Return the codes [1, T] of a stream of one item."""
        rows = len(stream.hidden)

        def shares_of(hidden: Tensor) -> Tensor:
            head = cast(Any, self.head)
            parts = [hidden[0], hidden[1] if rows == 2 else None]
            with blamed_in_step(self.part, "the distribution of", hidden):
                shares: Tensor = head.distribution(*parts, guidance=guidance, temperature=temperature)
            return shares

        def embed(codes: Tensor) -> Tensor:
            return self.embedder.each(codes[None]).expand(rows, -1, -1)

        window = self.window or _JACOBI_WINDOW
        return jacobi_codes(stream, shares_of, embed, self.facts.tokens, window, draws)[None]

    def zigzag(self, stream: Stream, guidance: float, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the codes [B, T] of every item of a stream."""
        height, width = self.facts.grid

        def embed(codes: Tensor) -> Tensor:
            embedded = self.embedder.each(codes)
            return embedded if guidance == 1 else torch.cat((embedded, embedded))

        window = min(width, self.window or max(1, width // 2))
        return zigzag_codes(stream, pick, embed, (height, width), window)
