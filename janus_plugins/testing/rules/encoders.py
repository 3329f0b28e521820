"""Rules for understanding encoders and generation encoders."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from janus_plugins.sequence.assemble import collate_items
from janus_plugins.testing.case import Case
from janus_plugins.testing.report import Broken, Skipped, expect
from janus_plugins.testing.rules.built import close, run, shape_is
from janus_plugins.testing.same import same
from janus_plugins.testing.subjects import ALL, subject_of


def features(case: Case) -> None:
    """Check that facts equal behaviour: features [N, T, width], T as the processor counts tokens."""
    facts, module, processor = case.facts, case.build().eval(), case.processor()
    wanted = "facts.max_tokens equal to facts.tokens where that is fixed"
    expect(facts.tokens in (None, facts.max_tokens), wanted, f"{facts.tokens} and {facts.max_tokens}")
    subject = subject_of(case)
    for items in ([0], list(ALL)):
        counts = [processor.num_tokens(case.arrays[item]) for item in items]
        for count in counts:
            expect(1 <= count <= facts.max_tokens, f"num_tokens from 1 to {facts.max_tokens}", count)
            fixed = facts.tokens in (None, count)
            expect(fixed, f"num_tokens to be facts.tokens, {facts.tokens}", count)
        shape = (len(items), max(counts), facts.width)
        shape_is(run(subject, module, subject.inputs(items)), shape, "features [N, T, facts.width]")


def lengths(case: Case) -> None:
    """Check that items of different lengths, where facts.tokens is None, run in one batch."""
    if case.facts.tokens is not None:
        raise Skipped("facts.tokens is fixed")
    processor = case.processor()
    counts = {processor.num_tokens(arrays) for arrays in case.arrays}
    if len(counts) < 2 and not case.raw:
        raise Skipped("no items of different lengths are known")
    wanted = "items of at least two lengths to try (items=[...] or the processor's examples())"
    expect(len(counts) > 1, wanted, f"{counts} tokens each")
    module, subject = case.build().eval(), subject_of(case)
    shortest, longest = sorted(ALL, key=lambda item: processor.num_tokens(case.arrays[item]))[:: len(ALL) - 1]
    answer = run(subject, module, subject.inputs([shortest, longest]))
    single = subject.part(run(subject, module, subject.inputs([shortest])), 0, shortest)
    wanted = "a short item's features to be the same beside a long one (mask by <name>_lengths)"
    expect(close(single, subject.part(answer, 0, shortest)), wanted, "other ones")


def items_apart(case: Case) -> None:
    """Check that different items give different answers."""
    module, subject = case.build().eval(), subject_of(case)
    apart = [item for item in ALL if not same(case.arrays[item], case.arrays[0])]
    if not apart:
        raise Skipped("all items are the same")
    encode = getattr(module, "encode", None)
    with torch.no_grad():
        made = [(encode or module)(subject.inputs([item])) for item in (0, *apart)]
    differ = any(made[0].shape != other.shape or not torch.equal(made[0], other) for other in made[1:])
    expect(differ, "different items to be told apart", "the same answer for every item")


def dummy(case: Case) -> None:
    """Check that the dummy that stands in for an absent modality gives finite values and gradients."""
    module, processor = case.build().train(), case.processor()
    arrays = processor.dummy()
    count = processor.num_tokens(arrays)
    most = getattr(case.facts, "max_tokens", None) or case.facts.tokens
    expect(1 <= count <= most, f"num_tokens of the dummy from 1 to {most}", count)
    answer = _features_or_codes(module, collate_items([arrays]))
    expect(bool(answer.isfinite().all()), "finite features of the dummy", "NaN or infinity")
    if not answer.requires_grad:
        return
    (answer.float().sum() * 0).backward()  # type: ignore[no-untyped-call]
    wanted = "gradients of exactly zero from the dummy times zero"
    for name, parameter in module.named_parameters():
        fine = parameter.grad is None or not parameter.grad.any()
        expect(fine, wanted, f"NaN, infinity or another value in {name}")


def _features_or_codes(module: Any, items: dict[str, Tensor]) -> Tensor:
    encode = getattr(module, "encode", None)
    made: Tensor = (encode or module)(items)
    return made


def codes(case: Case) -> None:
    """Check that facts equal behaviour: codes [N, T] or [N, T, Q] in range, or latents [N, T, width]."""
    facts, module, subject = case.facts, case.build().eval(), subject_of(case)
    expect(math.prod(facts.grid) == facts.tokens, f"a grid of {facts.tokens} places", facts.grid)
    for items in ([0], list(ALL)):
        with torch.no_grad():
            made = module.encode(subject.inputs(items))  # type: ignore[operator]
        if facts.form == "latents":
            shape_is(made, (len(items), facts.tokens, facts.width), "latents [N, facts.tokens, facts.width]")
            continue
        shape_is(
            made, (len(items), *facts.shape), "codes [N, facts.tokens], or with facts.codebooks [N, T, Q]"
        )
        expect(made.dtype == torch.int64, "codes as int64", made.dtype)
        seen = (int(made.min()), int(made.max()))
        wanted = f"codes from 0 to {facts.codebook_size - 1}"
        expect(seen[0] >= 0 and seen[1] < facts.codebook_size, wanted, f"{seen[0]} to {seen[1]}")
    for item in ALL:
        with torch.no_grad():
            single = module.encode(subject.inputs([item]))[0]  # type: ignore[operator]
        wanted = f"item {item} to have the same codes alone as in the batch"
        expect(close(single, made[item]), wanted, "other ones")


def decodes(case: Case) -> None:
    """Check that every code can be decoded, alone as in a batch, and what is decoded is finite."""
    facts, module = case.facts, case.build().eval()
    draw = torch.Generator().manual_seed(1)
    shape = (3, *facts.shape)
    if facts.form == "codes":
        given = torch.randint(facts.codebook_size, shape, generator=draw)
        given[0, 0], given[0, -1] = 0, facts.codebook_size - 1
    else:
        given = torch.randn(shape, generator=draw)
    with torch.no_grad():
        made = module.decode(given)  # type: ignore[operator]
        single = module.decode(given[1:2])[0]  # type: ignore[operator]
    shape_is(made, (3, *made.shape[1:]), "decoded items [N, ...]")
    expect(close(single, made[1]), "the same decoded item alone as in the batch", "another one")


def codebook(case: Case) -> None:
    """Check that a codebook, where one is offered, has a row of facts.width for every code (of each)."""
    give = getattr(case.build(), "codebook", None)
    if give is None:
        raise Skipped("it offers no codebook()")
    with torch.no_grad():
        shape = (case.facts.codebook_size, case.facts.width)
        several = () if case.facts.codebooks == 1 else (case.facts.codebooks,)
        shape_is(give(), (*several, *shape), "codebook() [K, facts.width], or of Q codebooks [Q, K, width]")


def artefacts(case: Case) -> None:
    """Check that what is decoded can be restored to an artefact and written to a file."""
    module, processor, subject = case.build().eval(), case.processor(), subject_of(case)
    wanted = "a processor with suffix, restore() and write(), as core.contracts.GenerationProcessor says"
    for name in ("suffix", "restore", "write"):
        expect(hasattr(processor, name), wanted, f"no {name}")
    ending = processor.suffix
    expect(ending.startswith(".") and len(ending) > 1, 'a suffix such as ".png"', repr(ending))
    decoded = run(subject, module, subject.inputs([0]))[0].float().numpy()
    made = processor.restore(decoded)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"made{ending}"
        processor.write(made, str(path), {"prompt": "ein Täst ☃", "seed": "1"})
        if not path.is_file() or not path.stat().st_size:
            raise Broken("write() to leave a file that is not empty", "none")


def reconstructs(case: Case) -> None:
    """Check that the encoder's own loss, where it has one, is a finite scalar called "loss"."""
    own = getattr(case.build().train(), "reconstruction_loss", None)
    if own is None:
        raise Skipped("it has no reconstruction_loss")
    losses = own(subject_of(case).inputs(ALL))
    expect(isinstance(losses, dict) and "loss" in losses, 'a dict with "loss"', f"{losses!r:.80}")
    for name, loss in losses.items():
        shape_is(loss, (), f"the loss {name!r}")


def shared(case: Case) -> None:
    """Check that features, where its config answers feature_facts(), are [N, tokens, width] and learn."""
    facts = case.config.feature_facts()
    if facts is None:
        raise Skipped("its config answers no feature_facts()")
    module, subject, processor = case.build().eval(), subject_of(case), case.processor()
    read: Any = getattr(module, "features", None)
    expect(read is not None, "a method features(items), as core.contracts.FeaturesEncoder says", "none")
    expect(facts.modality == case.facts.modality, f"features of {case.facts.modality!r}", facts.modality)
    for items in ([0], list(ALL)):
        counts = [processor.num_tokens(case.arrays[item]) for item in items]
        made = read(subject.inputs(items))
        shape_is(made, (len(items), max(counts), facts.width), "features [N, T, feature_facts().width]")
    expect(made.requires_grad, "features that gradients flow through", "features cut from the graph")
    single = read(subject.inputs([0]))[0]
    expect(close(single, made[0]), "an item's features alone as in the batch", "other ones")
