"""The head over several codebooks: a causal transformer over the Q codes of one frame.

Code q is predicted from the language model's hidden state and the codes before it in the frame, so that the
codes agree with one another, and the language model takes one slot a frame. Source: RQ-Transformer
(2203.01941), section 3.2; Moshi (2410.00037), section 3.4, where every code sees the hidden state anew.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.choice import choose, guide
from janus_plugins.core.class_layer import ClassLayer
from janus_plugins.core.contracts import Draws
from janus_plugins.core.facts import HeadFacts
from janus_plugins.heads.depth.spec import DepthConfig

Past = list[tuple[Tensor, Tensor]]
"""Keys and values [P, H, q, D] of the codes so far: none before the first, else the latest last."""


class Block(nn.Module):
    """Attend to the codes before in the frame, then an MLP; each after a normalisation."""

    def __init__(self, width: int, num_heads: int, feed: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.states, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, feed), nn.GELU(), nn.Linear(feed, width))

    def forward(self, stream: Tensor, past: Past | None = None) -> Tensor:
        """Return the stream [P, q, W]; with `past` the new codes alone go in, and see all before them."""
        rows, codes, width = stream.shape
        shape = (rows, codes, 3, self.num_heads, width // self.num_heads)
        query, key, value = self.states(self.first(stream)).view(shape).permute(2, 0, 3, 1, 4)
        if past is not None:
            if past:
                before = past.pop()
                key, value = torch.cat((before[0], key), 2), torch.cat((before[1], value), 2)
            past.append((key, value))
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        stream = stream + self.out(seen.transpose(1, 2).flatten(2))
        fed: Tensor = stream + self.feed(self.second(stream))
        return fed


class Depth(nn.Module):
    """Predict the Q codes of a frame from one hidden state."""

    def __init__(self, config: DepthConfig, facts: HeadFacts) -> None:
        super().__init__()
        self.config, self.codebooks, self.size, width = config, facts.codebooks, facts.size, config.width
        self.enter = nn.Linear(facts.in_width, width)
        self.places = nn.Embedding(facts.codebooks, width)
        self.codes = nn.Embedding((facts.codebooks - 1) * facts.size, width)
        for table in (self.places, self.codes):
            nn.init.normal_(table.weight, std=0.02)
        feed = config.feed or 4 * width
        self.blocks = nn.ModuleList(Block(width, config.num_heads, feed) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleList(ClassLayer(width, facts.size) for _ in range(facts.codebooks))

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each frame [P] (float32) of hidden [P, M], codes [P, Q].

        Summed over the codes of a frame, or their mean; see the options. Teacher forcing: code q sees the
        right codes before it.
        """
        places = torch.arange(self.codebooks, device=hidden.device)
        before = self.codes(targets[:, :-1] + places[:-1] * self.size)
        stream = self._enter(hidden)[:, None] + self.places(places)
        stream = stream + functional.pad(before, (0, 0, 1, 0))  # nothing is before the first
        for block in self.blocks:
            stream = block(stream)
        states = self.norm(stream)
        losses = [
            output(states[:, place], targets[:, place], self.config.chunk)
            for place, output in enumerate(self.outputs)
        ]
        whole = torch.stack(losses).sum(0)
        return whole if self.config.loss == "sum" else whole / self.codebooks

    def sample(
        self,
        hidden: Tensor,
        unconditional: Tensor | None,
        *,
        guidance: float,
        temperature: float,
        draws: Draws,
    ) -> Tensor:
        """Return the next codes of each row [B, Q]; see `core.contracts.Head`."""
        config, number = self.config, len(hidden)
        # Both kinds of rows in one product: the weight is read once.
        rows = hidden if unconditional is None else torch.cat((hidden, unconditional))
        entered = self._enter(rows)
        pasts: list[Past] = [[] for _ in self.blocks]
        chosen: list[Tensor] = []
        for _ in range(self.codebooks):
            logits, *other = torch.split(self._next(entered, pasts, chosen), number)
            guided = guide(logits, other[0] if other else None, guidance)
            chosen.append(
                choose(guided, temperature=temperature, draws=draws, top_k=config.top_k, top_p=config.top_p)
            )
        return torch.stack(chosen, 1)

    def _enter(self, hidden: Tensor) -> Tensor:
        entered: Tensor = self.enter(hidden.to(self.enter.weight.dtype))
        return entered

    def _next(self, entered: Tensor, pasts: list[Past], chosen: list[Tensor]) -> Tensor:
        """Return logits [rows, K] of the code after the chosen ones [B] each, which an item's rows share."""
        place = len(chosen)
        stream = entered + self.places(torch.tensor(place, device=entered.device))
        if chosen:
            last = self.codes(chosen[-1] + (place - 1) * self.size)
            stream = stream + last.repeat(len(entered) // len(last), 1)
        stream = stream[:, None]
        for block, past in zip(self.blocks, pasts, strict=True):
            stream = block(stream, past)
        logits: Tensor = self.outputs[place](self.norm(stream)[:, 0])
        return logits


def build(config: DepthConfig, facts: HeadFacts) -> Depth:
    """Build the head."""
    return Depth(config, facts)
