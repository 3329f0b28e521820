"""Packed and cached attention: nothing leaks, nothing is lost."""

import random
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from janus_plugins.core.contracts import Cached
from janus_plugins.core.devices import without_plans
from janus_plugins.core.errors import RunFileError
from janus_plugins.language_models import attention, model as model_module
from janus_plugins.language_models.attention import Varlen, packed_attention
from tests.components.toys import alone, gradients, packed_rows, tiny_llama


def random_rows(rng: random.Random, rows: int, slots: int) -> list[list[int]]:
    made = []
    for _ in range(rows):
        left, row = slots, []
        while left > 2 and rng.random() < 0.85:
            row.append(rng.randint(1, min(left, 9)))
            left -= row[-1]
        made.append(row or [1])
    return made


def samples(embeds, lengths):
    for row, segments in enumerate(lengths):
        at = 0
        for length in segments:
            yield slice(row, row + 1), slice(at, at + length)
            at += length


@pytest.mark.parametrize("heads", [4, 2, 1], ids="kv{}".format)
def test_packed_samples_equal_the_same_samples_alone(heads):
    model = tiny_llama(num_key_value_heads=heads)
    rng = random.Random(heads)
    for _ in range(8):
        lengths = random_rows(rng, 3, 24)
        embeds = torch.randn(3, 24, 32)
        plan, positions = packed_rows(lengths, 24)
        with torch.no_grad():
            packed = model.text_head.logits(model(embeds, positions, plan))
            for row, at in samples(embeds, lengths):
                single, place = alone(at.stop - at.start)
                expected = model.text_head.logits(model(embeds[row, at], place, single))
                assert (packed[row, at] - expected).abs().max() < 1e-5
        assert packed.isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_gradients_equal_those_of_the_samples_alone(checkpointing):
    model = tiny_llama(num_key_value_heads=2).train()
    model.set_checkpointing(checkpointing)
    lengths = [[5, 3, 5], [8, 1]]
    embeds = torch.randn(2, 16, 32, requires_grad=True)
    plan, positions = packed_rows(lengths, 16)
    used = torch.cat([group.reshape(-1) for group in plan.groups]).sort().values
    targets = torch.randint(61, (32,))
    hidden = model(embeds, positions, plan).view(32, 32)
    model.text_head.loss(hidden[used], targets[used]).sum().backward()
    together, inside = gradients(model), embeds.grad.clone()
    model.zero_grad()
    embeds.grad = None
    for row, at in samples(embeds, lengths):
        single, place = alone(at.stop - at.start)
        hidden = model(embeds[row, at], place, single)[0]
        model.text_head.loss(hidden, targets.view(2, 16)[row, at][0]).sum().backward()
    apart = gradients(model)
    assert together.keys() == apart.keys()
    scale = max(each.abs().max() for each in apart.values())
    assert all((together[name] - apart[name]).abs().max() < 1e-5 * scale for name in apart)
    assert (inside - embeds.grad).abs().max() < 1e-5 * scale


def test_checkpointing_recomputes_the_blocks():
    model = tiny_llama().train()
    calls = []
    layer = model.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    plan, positions = alone(4)
    for on, expected in ((False, 1), (True, 2), (False, 1)):
        calls.clear()
        model.set_checkpointing(on)
        model(torch.randn(1, 4, 32, requires_grad=True), positions, plan).sum().backward()
        assert len(calls) == expected


def test_a_batch_of_padding_alone_gives_zeros_and_gradients_of_zero():
    """What a rank gets when every sample of its micro-batch was bad, or there are fewer rows than batches."""
    model = tiny_llama().train()
    plan, positions = packed_rows([[]], 3)
    assert plan.groups == ()
    model(torch.randn(1, 3, 32), positions, plan).sum().backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    for name, grad in gradients(model).items():
        assert "q_proj" not in name or not grad.any()
    assert "model.layers.0.self_attn.q_proj.weight" in gradients(model)


def test_a_later_slot_never_changes_an_earlier_one():
    model = tiny_llama()
    plan, positions = alone(10)
    embeds = torch.randn(1, 10, 32)
    changed = embeds.clone()
    changed[:, 6:] += 1
    before, after = model(embeds, positions, plan), model(changed, positions, plan)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("steps", [[12], [1] * 12, [5, 1, 1, 1, 4], [3, 6, 3]], ids=str)
@pytest.mark.parametrize("heads", [4, 2])
def test_cached_decoding_equals_recomputing(steps, heads):
    model = tiny_llama(num_key_value_heads=heads)
    embeds = torch.randn(3, 12, 32)
    plan, positions = packed_rows([[12]] * 3, 12)
    cache, start, parts = model.new_cache(3, 20), 0, []
    with torch.no_grad():
        full = model(embeds, positions, plan)
        for size in steps:
            at = slice(start, start + size)
            parts.append(model(embeds[:, at], positions[:, at], Cached(start), cache))
            start += size
    assert (torch.cat(parts, 1) - full).abs().max() < 1e-4


def test_left_padding_changes_nothing_and_gives_no_nan():
    model = tiny_llama(num_key_value_heads=2)
    lengths, longest, after = [7, 4, 1], 7, 4
    texts = [torch.randn(1, length + after, 32) for length in lengths]
    padded = torch.cat(
        [
            torch.cat([torch.randn(1, longest - length, 32), text], 1)
            for length, text in zip(lengths, texts, strict=True)
        ]
    )
    spare = torch.tensor([longest - length for length in lengths])[:, None]
    visible = torch.arange(longest + after)[None] >= spare
    positions = (torch.arange(longest + after)[None] - spare).clamp(min=0)
    cache = model.new_cache(3, longest + after)
    with torch.no_grad():
        made = [model(padded[:, :longest], positions[:, :longest], Cached(0, visible[:, :longest]), cache)]
        for at in range(longest, longest + after):
            step = slice(at, at + 1)
            made.append(model(padded[:, step], positions[:, step], Cached(at, visible[:, : at + 1]), cache))
        hidden = torch.cat(made, 1)
        assert hidden.isfinite().all()
        for row, (length, text) in enumerate(zip(lengths, texts, strict=True)):
            plan, place = alone(length + after)
            expected = model(text, place, plan)[0]
            assert (hidden[row, longest - length :] - expected).abs().max() < 1e-4


def test_a_cache_can_be_used_for_another_prompt():
    model = tiny_llama()
    cache = model.new_cache(1, 8)
    positions = torch.arange(8)[None]
    first, second = torch.randn(1, 8, 32), torch.randn(1, 5, 32)
    with torch.no_grad():
        model(first, positions, Cached(0), cache)
        again = model(second, positions[:, :5], Cached(0), cache)
        assert torch.equal(again, model(second, positions[:, :5], Cached(0), model.new_cache(1, 8)))


def test_a_cache_that_is_too_small_is_refused():
    model = tiny_llama()
    embeds, positions = torch.randn(1, 4, 32), torch.arange(4)[None]
    with pytest.raises(RunFileError, match="1 rows of 3 slots cannot take 1 rows up to slot 4"):
        model(embeds, positions, Cached(0), model.new_cache(1, 3))
    with pytest.raises(RunFileError, match="2 rows of 9 slots cannot take 1 rows"):
        model(embeds, positions, Cached(0), model.new_cache(2, 9))


@pytest.mark.parametrize("choice", ["varlen", "flex"])
def test_a_kernel_that_needs_a_gpu_is_refused_without_one(choice):
    plan, _ = alone(4)
    with pytest.raises(RunFileError, match=f"attention: {choice} needs a GPU"):
        packed_attention(plan, torch.zeros(1, 4, 8), choice)


@torch.library.custom_op("janus_plugins_tests::varlen", mutates_args={})
def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    output = torch.empty_like(query)
    for start, stop in pairwise(bounds.tolist()):
        assert stop - start <= longest
        rows = [each[start:stop].transpose(0, 1)[None] for each in (query, key, value)]
        seen = scaled_dot_product_attention(*rows, is_causal=True, scale=scale)
        output[start:stop] = seen[0].transpose(0, 1)
    return output


@_varlen.register_fake
def _(query, key, value, bounds, longest, scale):
    return torch.empty_like(query)


_varlen.register_autograd(
    lambda ctx, grad: (grad, grad, grad, None, None, None), setup_context=lambda ctx, inputs, output: None
)


def varlen_on_a_cpu(
    query, key, value, bounds, _, longest, __, scale=None, window_size=None, enable_gqa=False
):
    assert window_size == (-1, 0)
    assert not enable_gqa
    return _varlen(query, key, value, bounds, longest, scale)


@pytest.mark.parametrize("heads", [4, 2])
def test_varlen_equals_grouped(heads, monkeypatch):
    """Also where torch's kernel has no heads that share keys, as in torch 2.11."""
    monkeypatch.setattr(attention, "varlen_attn", varlen_on_a_cpu)
    monkeypatch.setattr(attention, "_SHARES_HEADS", False)
    model = tiny_llama(num_key_value_heads=heads)
    plan, positions = packed_rows([[50, 7, 30], [64, 1, 20]], 128)
    embeds = torch.randn(2, 128, 32)
    used = torch.cat([group.reshape(-1) for group in plan.groups])
    expected = model(embeds, positions, plan).flatten(0, 1)[used]
    monkeypatch.setattr(model_module, "packed_attention", lambda plan, *_: Varlen(plan))
    assert (model(embeds, positions, plan).flatten(0, 1)[used] - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_a_compiled_block_stays_whole_around_varlen_and_serves_every_pack(monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", varlen_on_a_cpu)
    monkeypatch.setattr(model_module, "packed_attention", lambda plan, *_: Varlen(plan))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = tiny_llama(num_layers=12).train()
    model.compile_blocks()
    for lengths in (
        [[50, 7, 30], [64, 1, 20]],
        [[50, 7, 31], [64, 1, 20]],
        [[90, 7], [64, 1, 20, 5], [3, 4]],
    ):
        plan, positions = packed_rows(lengths, 128)
        embeds = torch.randn(len(lengths), 128, 32, requires_grad=True)
        model(embeds, positions, plan).square().sum().backward()
        assert embeds.grad is not None
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_cudnn_makes_no_plans_for_shapes_that_vary():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with without_plans(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with without_plans(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("choice", ["varlen", "flex"])
def test_gpu_kernels_equal_sdpa(choice, heads):
    model = tiny_llama(hidden_size=256, num_key_value_heads=heads).to("cuda", torch.bfloat16)
    lengths = [[50, 7, 30], [64, 1, 20]]
    plan, positions = packed_rows(lengths, 128)
    plan, positions = plan.to("cuda"), positions.cuda()
    used = torch.cat([group.reshape(-1) for group in plan.groups])
    results = []
    for kernel in ("sdpa", choice):
        model.attention = kernel
        torch.manual_seed(0)
        embeds = torch.randn(2, 128, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        hidden = model(embeds, positions, plan).view(256, 256)[used].float()
        hidden.square().sum().backward()
        results.append((hidden, embeds.grad.view(256, 256)[used].float()))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
