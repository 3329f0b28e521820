"""Rules for language models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from janus_plugins.core.contracts import Cached
from janus_plugins.core.facts import HeadFacts
from janus_plugins.sequence.packing import packed_plan
from janus_plugins.testing.case import Case
from janus_plugins.testing.partner_models import PartnerHead
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.rules.built import close, shape_is
from janus_plugins.testing.subjects import SLOTS, Language


def _embeds(case: Case, rows: int = 1) -> Tensor:
    return Language(case).inputs(range(rows))["embeds"]


def _packed(
    module: Any, embeds: Tensor, lengths: list[list[int]], reach: NDArray[np.int64] | None = None
) -> Tensor:
    """Run rows of packed segments, all with the same `reach`; return hidden states [B, S, M]."""
    rows, slots = embeds.shape[:2]
    positions = torch.zeros(rows, slots, dtype=torch.int64)
    for row, segments in enumerate(lengths):
        start = 0
        for length in segments:
            positions[row, start : start + length] = torch.arange(length)
            start += length
    with torch.no_grad():
        plan = packed_plan(lengths, slots, [[reach] * len(segments) for segments in lengths])
        hidden: Tensor = module(embeds, positions, plan)
    return hidden


def hidden(case: Case) -> None:
    """Check that facts equal behaviour: width, vocab_size and max_positions."""
    facts, module = case.facts, _model(case)
    with torch.no_grad():
        made = module.embed(torch.tensor([[0, 1, facts.vocab_size - 1]]))
        shape_is(made, (1, 3, facts.width), "embeddings [..., facts.width]")
        try:
            module.embed(torch.tensor([facts.vocab_size]))
        except IndexError:
            pass
        else:
            raise Broken(
                f"ids from facts.vocab_size, {facts.vocab_size}, on to be out of range", "an embedding"
            )
    shape_is(_packed(module, _embeds(case, 2), [[SLOTS]] * 2), (2, SLOTS, facts.width), "hidden states")
    last = torch.arange(facts.max_positions - SLOTS, facts.max_positions)[None]
    with torch.no_grad():
        made = module(_embeds(case), last, packed_plan([[SLOTS]], SLOTS))
    shape_is(made, (1, SLOTS, facts.width), f"hidden states at position {facts.max_positions - 1}, the last")


def packed(case: Case) -> None:
    """Check that a packed sample sees itself alone: nothing of its row mates, nothing after itself."""
    module, embeds = _model(case), _embeds(case)
    together = _packed(module, embeds, [[4, 3]])  # the last two slots are padding
    expect(bool(together.isfinite().all()), "finite hidden states, padding included", "NaN or infinity")
    for start, stop in ((0, 4), (4, 7)):
        single = _packed(module, embeds[:, start:stop], [[stop - start]])
        wanted = f"slots {start} to {stop - 1} of a packed row as if they were alone"
        expect(close(single, together[:, start:stop]), wanted, "other hidden states: attention leaks")
    changed = embeds.clone()
    changed[:, 5] = changed[:, 5].flip(-1)  # a constant shift would vanish in a layer norm
    after = _packed(module, changed, [[SLOTS]])
    before = _packed(module, embeds, [[SLOTS]])
    expect(close(before[:, :5], after[:, :5]), "no slot to see a later one", "attention that is not causal")
    expect(not torch.equal(before[:, 6:], after[:, 6:]), "later slots to see earlier ones", "they do not")


def blocks(case: Case) -> None:
    """Check that slots see later ones of their block where the plan says so, packed and with the cache."""
    if not case.facts.bidirectional:
        raise Skipped("its facts do not say bidirectional")
    module, embeds = _model(case), _embeds(case, 2)
    reach = np.array([0, 1, 4, 4, 4, 7, 7, 7, 8])  # two blocks of three inside a line
    whole = _packed(module, embeds, [[SLOTS]] * 2, reach)
    changed = embeds.clone()
    changed[:, 4] = changed[:, 4].flip(-1)
    after = _packed(module, changed, [[SLOTS]] * 2, reach)
    wanted = "no slot to see beyond Packed.reach"
    expect(close(whole[:, :2], after[:, :2]), wanted, "hidden states that depend on a later block")
    for slot in (2, 3):
        wanted = "slots to see as far as Packed.reach (facts.bidirectional)"
        expect(not close(whole[:, slot], after[:, slot]), wanted, "attention that is causal all the same")
    store, made = module.new_cache(2, SLOTS), []
    for start, stop, block in ((0, 5, 3), (5, 8, 3), (8, 9, 1)):
        positions = torch.arange(start, stop).expand(2, -1)
        with torch.no_grad():
            made.append(module(embeds[:, start:stop], positions, Cached(start, block=block), store))
    wanted = "the hidden states of the whole sequence from steps that end in a block (Cached.block)"
    expect(close(torch.cat(made, dim=1), whole), wanted, "other ones")


def cache(case: Case) -> None:
    """Check that decoding step by step with the cache equals the whole sequence at once."""
    module, embeds = _model(case), _embeds(case, 2)
    whole = _packed(module, embeds, [[SLOTS]] * 2)
    store, made = module.new_cache(2, SLOTS), []
    for start, stop in ((0, 5), *((slot, slot + 1) for slot in range(5, SLOTS))):
        positions = torch.arange(start, stop).expand(2, -1)
        with torch.no_grad():
            made.append(module(embeds[:, start:stop], positions, Cached(start), store))
    wanted = "the hidden states of the whole sequence from a prompt of 5 slots and 4 single steps"
    expect(close(torch.cat(made, dim=1), whole), wanted, "other ones")


def padding(case: Case) -> None:
    """Check that left padding that is marked invisible changes nothing."""
    module, embeds, pad = _model(case), _embeds(case), 3
    padded = torch.cat([torch.ones(1, pad, embeds.shape[2]), embeds], dim=1)
    positions = torch.cat([torch.zeros(1, pad, dtype=torch.int64), torch.arange(SLOTS)[None]], dim=1)
    visible = torch.ones(1, pad + SLOTS, dtype=torch.bool)
    visible[:, :pad] = False
    with torch.no_grad():
        made = module(padded, positions, Cached(0, visible), module.new_cache(1, pad + SLOTS))
    expect(bool(made.isfinite().all()), "finite hidden states on padding", "NaN or infinity")
    wanted = "the same hidden states with and without left padding"
    expect(close(made[:, pad:], _packed(module, embeds, [[SLOTS]])), wanted, "other ones")


def checkpointing(case: Case) -> None:
    """Check that recomputing activations, all or a selection of them, changes no gradient."""
    subject, gradients = Language(case), {}
    for on in (False, True, "selective"):
        module: Any = case.build().train()
        module.set_checkpointing(on)
        loss = subject.learnt(module, subject.inputs((0, 1)))
        assert loss is not None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients[on] = {name: each.grad for name, each in subject.parameters(module)}
    for on in (True, "selective"):
        for name, plain in gradients[False].items():
            other = gradients[on][name]
            fine = plain is other if plain is None or other is None else close(plain, other)
            expect(fine, f"the same gradients with set_checkpointing({on!r})", f"others for {name}")


def text_head(case: Case) -> None:
    """Check that the text head is taken, its weight tied to the embedding where facts say so."""
    facts = case.facts
    module: Any = case.build()
    head = PartnerHead(HeadFacts("text", facts.width, facts.vocab_size))
    module.attach_text_head(head)
    expect(module.text_head is head, "text_head to be the head that was attached", "another object")
    ids = torch.arange(facts.vocab_size)
    with torch.no_grad():
        head.output.weight.fill_(0.5)
        shared = torch.equal(module.embed(ids), torch.full((facts.vocab_size, facts.width), 0.5))
    wanted = f"the token embedding {'shared' if facts.tied else 'not shared'} with the head (facts.tied)"
    expect(shared == facts.tied, wanted, "shared" if shared else "not shared")


def _model(case: Case) -> Any:
    return case.build().eval()
