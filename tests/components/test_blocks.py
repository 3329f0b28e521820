"""Attention within blocks: what a plan lets a slot see is what it sees, packed and cached."""

import random

import pytest
import torch

from janus_plugins.core.contracts import Cached
from janus_plugins.core.errors import RunFileError
from janus_plugins.language_models.attention import Grouped, flat_mask, packed_attention
from janus_plugins.sequence.blocks import Blocks
from janus_plugins.sequence.packing import packed_plan
from tests.components.toys import tiny_llama


def random_pack(rng: random.Random, rows: int, width: int):
    """Plan rows of samples, some with blocks: (plan, positions, dense mask [rows * width, the same])."""
    lengths, reach = [], []
    positions = torch.zeros(rows, width, dtype=torch.int64)
    mask = torch.eye(rows * width, dtype=torch.bool)
    for row in range(rows):
        lengths.append([])
        reach.append([])
        start = 0
        while width - start > 12 and (not start or rng.random() < 0.9):
            size = rng.choice([1, 2, 4])
            before, after = rng.randint(0, 3), rng.randint(0, 2)
            length = before + 4 + size + after
            seen = torch.arange(length).numpy()
            seen[before : before + 4 + size] = before + Blocks(size).reach(4 + size - 1)
            positions[row, start : start + length] = torch.arange(length)
            for slot in range(length):
                flat = row * width + start
                mask[flat + slot, flat : flat + int(seen[slot]) + 1] = True
            lengths[-1].append(length)
            reach[-1].append(seen if size > 1 else None)
            start += length
    return packed_plan(lengths, width, reach), positions, mask


@pytest.mark.parametrize("kept", [4, 2])
def test_grouped_attention_equals_a_dense_mask(kept):
    rng = random.Random(kept)
    for _ in range(8):
        plan, _, mask = random_pack(rng, 2, 40)
        states = [torch.randn(2, heads, 40, 8) for heads in (4, kept, kept)]
        made = Grouped(plan)(0, *states, scale=None, dropout=0.0).flatten(0, 1)
        flat = [each.transpose(1, 2).flatten(0, 1).transpose(0, 1) for each in states]
        flat[1:] = [each.repeat_interleave(4 // kept, 0) for each in flat[1:]]
        dense = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=mask).transpose(0, 1)
        used = torch.cat([group.reshape(-1) for group in plan.groups])
        torch.testing.assert_close(made[used], dense[used], atol=1e-5, rtol=1e-5)


def test_the_mask_of_flex_attention_equals_the_dense_one():
    rng = random.Random(5)
    at = torch.arange(80)
    for _ in range(8):
        plan, _, mask = random_pack(rng, 2, 40)
        used = torch.cat([group.reshape(-1) for group in plan.groups])
        seen = flat_mask(plan, 80)(at, at, at[:, None], at[None])
        assert torch.equal(seen[used], mask[used])


def test_a_kernel_that_is_causal_only_is_refused():
    plan, _, _ = random_pack(random.Random(1), 2, 40)

    class OnGpu:
        device, dtype, shape = torch.device("cuda"), torch.bfloat16, (2, 40, 8)

    with pytest.raises(RunFileError, match=r"varlen is causal, but .* use attention: auto"):
        packed_attention(plan, OnGpu(), "varlen")
    assert isinstance(packed_attention(plan, OnGpu(), "auto"), Grouped)


def test_gradients_flow_within_a_block_and_never_back_from_a_later_one():
    model = tiny_llama()
    seen = torch.tensor([0, 2, 2, 4, 4, 5]).numpy()
    plan = packed_plan([[6]], 6, [[seen]])
    embeds = torch.randn(1, 6, 32, requires_grad=True)
    hidden = model(embeds, torch.arange(6)[None], plan)
    for slot, last in enumerate(seen):
        (grad,) = torch.autograd.grad(hidden[0, slot].square().sum(), embeds, retain_graph=True)
        reached = grad[0].abs().amax(-1) > 0
        assert reached.tolist() == [at <= last for at in range(6)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kept", [4, 2])
def test_cached_blocks_equal_the_whole_sequence(kept, padded):
    """A prompt whose last four slots are a block, then two blocks: against one pass over everything."""
    model = tiny_llama(num_key_value_heads=kept)
    lengths, longest = ([7, 5, 4] if padded else [7, 7, 7]), 7
    rows = [torch.randn(1, length + 8, 32) for length in lengths]
    embeds = torch.cat(
        [torch.nn.functional.pad(row, (0, 0, 15 - row.shape[1], 0), value=1.0) for row in rows]
    )
    pads = longest - torch.tensor(lengths)[:, None]
    positions = (torch.arange(15) - pads).clamp(min=0)
    visible = torch.arange(15) >= pads
    cache, made = model.new_cache(3, 15), []
    with torch.no_grad():
        for start, stop in ((0, 7), (7, 11), (11, 15)):
            plan = Cached(start, visible[:, :stop] if padded else None, block=4)
            made.append(model(embeds[:, start:stop], positions[:, start:stop], plan, cache))
        hidden = torch.cat(made, 1)
        for index, (length, row) in enumerate(zip(lengths, rows, strict=True)):
            seen = torch.arange(length + 8).numpy()
            seen[length - 4 :] = length - 4 + Blocks(4).reach(11)
            plan = packed_plan([[length + 8]], length + 8, [[seen]])
            whole = model(row, torch.arange(length + 8)[None], plan)[0]
            assert (
                model.text_head.logits(hidden[index, longest - length :]) - model.text_head.logits(whole)
            ).abs().max() < 1e-4


@pytest.mark.gpu
def test_flex_attention_on_a_gpu_equals_grouped():
    model = tiny_llama(hidden_size=256).to("cuda", torch.bfloat16)
    plan, positions, _ = random_pack(random.Random(3), 2, 128)
    plan, positions = plan.to("cuda"), positions.cuda()
    used = torch.cat([group.reshape(-1) for group in plan.groups])
    results = []
    for kernel in ("sdpa", "flex"):
        model.attention = kernel
        torch.manual_seed(0)
        embeds = torch.randn(2, 128, 256, device="cuda", dtype=torch.bfloat16)
        results.append(model(embeds, positions, plan).flatten(0, 1)[used].float())
    assert (results[0] - results[1]).norm() < 0.03 * results[0].norm()
