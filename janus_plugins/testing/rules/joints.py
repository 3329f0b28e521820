"""Rules for adapters and heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from janus_plugins.core.errors import JanusPluginsError
from janus_plugins.core.facts import UnderstandingFacts
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.testing.case import Case
from janus_plugins.testing.partners import PartnerModelConfig
from janus_plugins.testing.report import Skipped, expect
from janus_plugins.testing.rules.built import close, run, shape_is
from janus_plugins.testing.subjects import ALL, Adapter, Head

SEEDS = (11, 12, 13, 14)


def embeddings(case: Case) -> None:
    """Check that facts equal behaviour: embeddings [N, output_tokens(T), out_width], N may be 0."""
    subject, module = Adapter(case), case.build().eval()
    leaving = case.config.output_tokens(subject.tokens)
    if case.path != "features":
        expect(leaving == subject.tokens, "a slot for each of a generated item's tokens", f"{leaving} slots")
    for number in (1, len(ALL)):
        shape = (number, leaving, case.facts.out_width)
        answer = run(subject, module, subject.inputs(ALL[:number]))
        shape_is(answer, shape, "embeddings [N, output_tokens(T), facts.out_width]")
    none = {"source": subject.inputs(ALL)["source"][:0]}
    shape_is(run(subject, module, none), (0, leaving, case.facts.out_width), "embeddings of no items")


def token_counts(case: Case) -> None:
    """Check that items of any length fit output_tokens, unless facts() or it refuses them."""
    _serves_any_length(case)
    subject, module = Adapter(case), case.build().eval()
    for entering in (1, 4, 7, subject.tokens - 1):
        try:
            leaving = case.config.output_tokens(entering)
        except JanusPluginsError:
            continue
        source = torch.stack([subject.source(item, entering) for item in (0, 1)])
        answer = run(subject, module, {"source": source})
        wanted = f"embeddings of {entering} tokens, [N, output_tokens({entering}), facts.out_width]"
        shape_is(answer, (2, leaving, case.facts.out_width), wanted)


def mixed_lengths(case: Case) -> None:
    """Check that an item's embeddings are the same alone as beside a longer item, whatever pads it."""
    _serves_any_length(case)
    subject, module = Adapter(case), case.build().eval()
    long, behind = subject.source(1, subject.tokens), subject.source(2, subject.tokens)
    for short in (1, 4, subject.tokens // 2, subject.tokens - 1):
        source = subject.source(0, short)
        try:
            leaving = case.config.output_tokens(short)
            single = run(subject, module, {"source": source[None]})[0, :leaving]
        except JanusPluginsError:
            continue
        padded = torch.cat([source, behind[short:]])
        lengths = torch.tensor([short, subject.tokens])
        both = run(subject, module, {"source": torch.stack([padded, long]), "lengths": lengths})
        wanted = (
            f"an item of {short} features to have the same {leaving} embeddings alone as beside one of "
            f"{subject.tokens} (declare forward(source, lengths=None), and mask by it)"
        )
        expect(close(single, both[0, :leaving]), wanted, "other ones")


def _serves_any_length(case: Case) -> None:
    """Skip the rule where items cannot differ in length."""
    beside = case.neighbour
    if not isinstance(beside, UnderstandingFacts):
        raise Skipped("codes and latents of an item are of a fixed number")
    try:
        case.config.facts(replace(beside, tokens=None), PartnerModelConfig().facts())
    except JanusPluginsError:
        raise Skipped("its facts() refuse encoders whose items differ in length") from None


def losses(case: Case) -> None:
    """Check that facts equal behaviour: one float32 loss a position, for any number of positions."""
    subject, module = Head(case), case.build().eval()
    for number in (0, 1, len(ALL)):
        answer = run(subject, module, subject.inputs(ALL[:number]))
        shape_is(answer, (number,), f"losses [P] of {number} positions")
        expect(answer.dtype == torch.float32, "losses in float32", answer.dtype)
    given = subject.inputs(ALL)
    last = torch.full_like(given["targets"], case.facts.size - 1) if case.path != "latents" else None
    if last is not None:
        answer = run(subject, module, {**given, "targets": last})
        shape_is(answer, (len(ALL),), f"losses of class {case.facts.size - 1}, the last")
    other = {**given, "targets": given["targets"].roll(1, 0)}
    answers = [run(subject, module, each) for each in (given, other)]
    expect(not torch.equal(*answers), "the loss to depend on the targets", "it does not")


def sample(case: Case) -> None:
    """Check that a sample fits the facts, repeats for equal draws, and depends on its own row alone."""
    module, hidden = case.build().eval(), Head(case).inputs(ALL)["hidden"]
    other = hidden.roll(1, 0)
    for beside, temperature in ((None, 0.0), (other, 0.0), (None, 1.0), (other, 1.0)):
        made = _sample(module, hidden, beside, temperature, SEEDS)
        _check_sample(case, made)
        again = _sample(module, hidden, beside, temperature, SEEDS)
        expect(close(made, again), f"the same sample for equal draws (temperature {temperature})", "another")
        for row in range(len(hidden)):
            cut = slice(row, row + 1)
            single = _sample(
                module, hidden[cut], None if beside is None else beside[cut], temperature, SEEDS[cut]
            )
            expect(close(single[0], made[row]), "a row's sample alone as in the batch", "another one")
    greedy = [_sample(module, hidden, None, 0.0, seeds) for seeds in (SEEDS, SEEDS[::-1])]
    expect(close(*greedy), "temperature 0 to draw nothing", "samples that depend on the draws")


def _sample(module: Any, hidden: Tensor, beside: Tensor | None, temperature: float, seeds: Any) -> Tensor:
    with torch.no_grad():
        made: Tensor = module.sample(
            hidden, beside, guidance=2.0, temperature=temperature, draws=SeededDraws(seeds)
        )
    return made


def _check_sample(case: Case, made: Tensor) -> None:
    if case.path == "latents":
        shape_is(made, (len(SEEDS), case.facts.size), "sampled latents [B, facts.size]")
        return
    several = case.facts.codebooks
    shape = (len(SEEDS),) if several == 1 else (len(SEEDS), several)
    shape_is(made, shape, "sampled ids [B], or [B, facts.codebooks]")
    expect(made.dtype == torch.int64, "ids as int64", made.dtype)
    inside = int(made.min()) >= 0 and int(made.max()) < case.facts.size
    expect(inside, f"ids from 0 to {case.facts.size - 1}", f"{int(made.min())} to {int(made.max())}")


def logits(case: Case) -> None:
    """Check that a head over tokens also offers logits [P, V]."""
    if case.path != "text":
        raise Skipped("it does not predict text here")
    module: Any = case.build().eval()
    wanted = "a method logits(hidden [P, M]) -> [P, V], which answering questions needs"
    expect(hasattr(module, "logits"), wanted, "none")
    with torch.no_grad():
        made = module.logits(Head(case).inputs(ALL)["hidden"])
    shape_is(made, (len(ALL), case.facts.size), "logits [P, facts.size]")
