"""How a component of each kind is fed and run, so that one set of rules serves them all.

Items are numbered; `inputs([1, 3])` are the inputs of items 1 and 3 as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from janus_plugins.core.facts import GenerationFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.model.joint import adapt, takes_lengths
from janus_plugins.sequence.assemble import collate_items
from janus_plugins.sequence.packing import packed_plan
from janus_plugins.testing.case import Case
from janus_plugins.testing.items import NUM_ITEMS

ALL = tuple(range(NUM_ITEMS))
SLOTS = 9

Inputs = dict[str, Tensor]


class Subject(Protocol):
    """Feed and run one kind of component."""

    def __init__(self, case: Case) -> None: ...

    def inputs(self, items: Sequence[int]) -> Inputs:
        """Return the inputs of some items as one batch."""
        ...

    def run(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Return the component's answer; item i's part is `answer[i]`, its padding cut by `part`."""
        ...

    def part(self, answer: Tensor, row: int, item: int) -> Tensor:
        """Return what an answer's row says about an item."""
        ...

    def learnt(self, module: nn.Module, inputs: Inputs) -> Tensor | None:
        """Return the scalar through which the component learns, or None where it does not."""
        ...

    def parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the component's own parameters."""
        ...


class _Base:
    """Answer what most kinds have in common."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def part(self, answer: Tensor, row: int, item: int) -> Tensor:
        """Return what an answer's row says about an item."""
        return answer[row]

    def run(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Return the component's answer."""
        answer: Tensor = module(inputs)
        return answer

    def learnt(self, module: nn.Module, inputs: Inputs) -> Tensor | None:
        """Return the scalar through which the component learns."""
        answer = self.run(module, inputs).float()
        # Squares of a fixed random projection: a plain sum is constant after a normalisation.
        draw = torch.Generator().manual_seed(3)
        weights = torch.randn(answer.shape, generator=draw)
        return (answer * weights).square().mean() + (answer * weights).mean()

    def parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the component's own parameters."""
        yield from module.named_parameters()


class Understanding(_Base):
    """Feed an understanding encoder with collated items."""

    def inputs(self, items: Sequence[int]) -> Inputs:
        """Return the inputs of some items as one batch."""
        return collate_items([self.case.arrays[item] for item in items])

    def part(self, answer: Tensor, row: int, item: int) -> Tensor:
        """Return what an answer's row says about an item."""
        return answer[row, : self.case.processor().num_tokens(self.case.arrays[item])]


class Generation(_Base):
    """Feed a generation encoder with collated items; its answer is what it decodes from fixed codes."""

    def inputs(self, items: Sequence[int]) -> Inputs:
        """Return the inputs of some items as one batch."""
        return collate_items([self.case.arrays[item] for item in items])

    def run(self, module: Any, inputs: Inputs) -> Tensor:
        """Return the component's answer."""
        made: Tensor = module.decode(module.encode(inputs))
        return made

    def learnt(self, module: Any, inputs: Inputs) -> Tensor | None:
        """Return the scalar through which the component learns."""
        own = getattr(module, "reconstruction_loss", None)
        if own is None:
            return None
        loss: Tensor = own(inputs)["loss"]
        return loss


class Adapter(_Base):
    """Feed an adapter with made features, codes or latents."""

    def inputs(self, items: Sequence[int]) -> Inputs:
        """Return the inputs of some items as one batch."""
        return {"source": torch.stack([self.source(item, self.tokens) for item in items])}

    @property
    def tokens(self) -> int:
        """Return the tokens of one item that enters."""
        beside = self.case.neighbour
        if isinstance(beside, GenerationFacts):
            return beside.tokens
        return beside.max_tokens if beside else 0

    def source(self, item: int, tokens: int) -> Tensor:
        """Return what an encoder would make of one item: [T, C], or codes [T] or [T, Q]."""
        draw = torch.Generator().manual_seed(item)
        beside = self.case.neighbour
        assert beside is not None
        if isinstance(beside, GenerationFacts) and beside.form == "codes":
            shape = (tokens, *beside.shape[1:])
            return torch.randint(beside.codebook_size or 1, shape, generator=draw)
        return torch.randn(tokens, beside.width, generator=draw)

    def run(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Return the component's answer, "lengths" given where it takes them, as in a model."""
        lengths = inputs["lengths"].tolist() if "lengths" in inputs and takes_lengths(module) else None
        return adapt(module, inputs["source"], lengths)


class Head(_Base):
    """Feed a head with made hidden states and targets; its answer is its losses."""

    def inputs(self, items: Sequence[int]) -> Inputs:
        """Return the inputs of some items as one batch."""
        width = self.case.facts.in_width
        hidden = [torch.randn(width, generator=torch.Generator().manual_seed(item)) for item in items]
        targets = [self.target(item) for item in items]
        empty = torch.zeros(0, width)
        if not items:
            return {"hidden": empty, "targets": self.target(0)[None][:0]}
        return {"hidden": torch.stack(hidden), "targets": torch.stack(targets)}

    def target(self, item: int) -> Tensor:
        """Return one token id, code or latent, or the Q codes of a slot."""
        draw = torch.Generator().manual_seed(100 + item)
        size = self.case.facts.size
        if self.case.path == "latents":
            return torch.randn(size, generator=draw)
        several = self.case.facts.codebooks
        return torch.randint(size, () if several == 1 else (several,), generator=draw)

    def run(self, module: Any, inputs: Inputs) -> Tensor:
        """Return the component's answer."""
        losses: Tensor = module.loss(inputs["hidden"], inputs["targets"])
        return losses

    def learnt(self, module: Any, inputs: Inputs) -> Tensor | None:
        """Return the scalar through which the component learns."""
        return self.run(module, inputs).mean()


class Language(_Base):
    """Feed a language model with embeddings, each item a row of its own."""

    def inputs(self, items: Sequence[int]) -> Inputs:
        """Return the inputs of some items as one batch."""
        facts = self.case.facts
        draws = [torch.Generator().manual_seed(item) for item in items]
        ids = [torch.randint(facts.vocab_size, (SLOTS,), generator=draw) for draw in draws]
        embeds = [torch.randn(SLOTS, facts.width, generator=draw) for draw in draws]
        return {"ids": torch.stack(ids), "embeds": torch.stack(embeds)}

    def run(self, module: Any, inputs: Inputs) -> Tensor:
        """Return the component's answer."""
        rows, slots = inputs["embeds"].shape[:2]
        device = inputs["embeds"].device
        positions = torch.arange(slots, device=device).expand(rows, slots)
        plan = packed_plan([[slots]] * rows, slots).to(device)
        answer: Tensor = module(inputs["embeds"], positions, plan)
        return answer

    def learnt(self, module: Any, inputs: Inputs) -> Tensor | None:
        """Return the scalar through which the component learns."""
        return super().learnt(module, {**inputs, "embeds": module.embed(inputs["ids"])})

    def parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the component's own parameters."""
        for name, parameter in module.named_parameters():
            if not name.startswith("text_head."):
                yield name, parameter


SUBJECTS: dict[Kind, type[Any]] = {
    Kind.UNDERSTANDING_ENCODER: Understanding,
    Kind.GENERATION_ENCODER: Generation,
    Kind.ADAPTER: Adapter,
    Kind.HEAD: Head,
    Kind.LANGUAGE_MODEL: Language,
}


def subject_of(case: Case) -> Subject:
    """Return how a case is fed and run."""
    made: Subject = SUBJECTS[case.kind](case)
    return made
