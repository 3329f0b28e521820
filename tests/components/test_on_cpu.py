"""A Llama's decoding step in C against the same step in torch, and where it is not taken."""

import contextlib

import pytest
import torch

from janus_plugins.core.contracts import Cached
from janus_plugins.core.native.build import can_run
from janus_plugins.core.native.products import FEW_ROWS, Weight, can_read_4_bits
from janus_plugins.inference.linears import fast_linears
from janus_plugins.language_models import on_cpu
from tests.components.test_step import decoded
from tests.components.toys import tiny_llama

pytestmark = pytest.mark.skipif(not can_run(), reason="this machine runs no such code")


class Offer:
    """Stand in for a layer's forward, and say what it multiplies by, in the numbers of `dtype`."""

    stands_in = True

    def __init__(self, layer, dtype):
        self.kind, self.weight = layer.weight.dtype, _weight(layer, dtype)
        self.weights = [self.weight]

    def __call__(self, source):
        (numbers, bias, scales), kind = self.weight, self.kind
        if scales is None:
            return torch.nn.functional.linear(
                source, numbers.to(kind), None if bias is None else bias.to(kind)
            )
        # As `_weight_int8pack_mm`: rows and outputs in bf16.
        made = (source.bfloat16().float() @ numbers.float().T * scales).bfloat16().to(kind)
        return made if bias is None else made + bias.to(kind)


def _weight(layer, dtype):
    bias = None if layer.bias is None else layer.bias.detach().float()
    if dtype != torch.int8:
        return Weight(layer.weight.detach().to(dtype), bias)
    scales = layer.weight.detach().abs().amax(1).float() / 127
    return Weight((layer.weight.detach() / scales[:, None]).round().to(torch.int8), bias, scales)


@contextlib.contextmanager
def offered(
    llama, dtype, names=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
):
    layers = [one for name, one in llama.model.named_modules() if name.rpartition(".")[2] in names]
    for layer in layers:
        layer.forward = Offer(layer, dtype)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextlib.contextmanager
def in_torch():
    """Let no step be taken in C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_cpu.OnCpu, "of", classmethod(lambda cls, step: None))
        yield


@pytest.fixture
def calls(monkeypatch):
    """Count the steps taken in C."""
    made, run = [], on_cpu.OnCpu.__call__
    monkeypatch.setattr(on_cpu.OnCpu, "__call__", lambda self, *given: made.append(1) or run(self, *given))
    return made


def both(llama, dtype, rows=2, length=5, steps=6, visible=None, **how):
    """Return the hidden states of the steps in C and in torch, over the same weights."""
    kind = llama.model.norm.weight.dtype
    torch.manual_seed(0)
    width = llama.facts.width
    prompt, further = (
        torch.randn(rows, length, width, dtype=kind),
        torch.randn(steps, rows, 1, width, dtype=kind),
    )
    with torch.no_grad(), offered(llama, dtype, **how):
        native, cache = decoded(llama, prompt, further, visible)
        assert cache.step.on_cpu
        with in_torch():
            plain, other = decoded(llama, prompt, further, visible)
    return native, plain, cache, other


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_step_in_c_gives_what_torch_gives(calls, groups, padded, dtype):
    llama = tiny_llama(num_key_value_heads=groups).eval()
    visible = torch.tensor([[False, False, True, True, True], [True] * 5]) if padded else None
    native, plain, cache, other = both(llama, dtype, visible=visible)
    assert len(calls) == 6
    assert (native - plain).abs().max() < 1e-5
    for mine, theirs in zip(cache.layers.values(), other.layers.values(), strict=True):
        for one, two in zip(mine, theirs, strict=True):
            assert (one - two).abs().max() < 1e-5


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_in_bf16_keeps_its_cache_so_and_sums_up_in_fp32(padded):
    llama = tiny_llama().eval()
    exact = {name: value.clone() for name, value in llama.state_dict().items()}
    halved = {name: value.bfloat16().float() for name, value in exact.items()}
    visible = torch.tensor([[False, True, True, True, True], [True] * 5]) if padded else None
    native, plain, cache, _ = both(llama.to(torch.bfloat16), torch.bfloat16, visible=visible)
    assert native.dtype == torch.bfloat16
    assert {each.dtype for pair in cache.layers.values() for each in pair} == {torch.bfloat16}
    whole = tiny_llama().eval()
    whole.load_state_dict(halved)
    torch.manual_seed(0)
    prompt, further = (
        torch.randn(2, 5, 32, dtype=torch.bfloat16),
        torch.randn(6, 2, 1, 32, dtype=torch.bfloat16),
    )
    with torch.no_grad():
        truth, _ = decoded(whole, prompt.float(), further.float(), visible)
    off = [(one.float() - truth)[:, 1:].abs().mean() for one in (native, plain)]
    assert off[0] < off[1] < 0.02


@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS])
def test_rows_mind_neither_their_number_nor_the_threads(rows):
    llama = tiny_llama().eval()
    torch.manual_seed(1)
    prompt, steps = torch.randn(rows, 4, 32), torch.randn(5, rows, 1, 32)
    before = torch.get_num_threads()
    with torch.no_grad(), offered(llama, torch.float32):
        whole, cache = decoded(llama, prompt, steps)
        assert cache.step.on_cpu
        alone = torch.cat([_one_row(llama, whole, prompt, steps, row) for row in range(rows)])
        try:
            torch.set_num_threads(3)
            threaded, _ = decoded(llama, prompt, steps)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(whole, threaded)
    # Prompts run in torch, whose rows may mind their mates.
    assert (whole - alone).abs().max() < 1e-5


def _one_row(llama, whole, prompt, steps, row):
    return decoded(llama, prompt[row : row + 1], steps[:, row : row + 1])[0]


def test_long_caches_and_wide_heads_in_threads():
    llama = tiny_llama(
        hidden_size=192, intermediate_size=500, num_heads=2, num_key_value_heads=1, init_std=0.05
    ).eval()
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            native, plain, *_ = both(llama, torch.float32, rows=2, length=200, steps=4)
            assert (native - plain).abs().max() < 1e-5
            made.append(native)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


@pytest.mark.parametrize("width", [20, 48, 136])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_of_any_width_see_what_is_visible_and_no_more(width, dtype):
    llama = tiny_llama(hidden_size=2 * width, num_heads=2, num_key_value_heads=1, init_std=0.05).eval()
    torch.manual_seed(4)
    visible = torch.rand(3, 70) < 0.6
    visible[0, :33] = False  # only the last half is there
    visible[1] = True
    native, plain, *_ = both(llama.to(dtype), dtype, rows=3, length=70, steps=5, visible=visible)
    assert (native - plain).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)
    with torch.no_grad(), offered(llama, dtype):
        torch.manual_seed(0)
        prompt = torch.randn(3, 70, 2 * width, dtype=dtype)
        further = torch.randn(5, 3, 1, 2 * width, dtype=dtype)
        unseen = torch.where(visible[..., None], prompt, 3.0 * torch.randn_like(prompt))
        other, cache = decoded(llama, unseen, further, visible)
        assert cache.step.on_cpu
    assert torch.equal(other[:, 1:], native[:, 1:])


@pytest.mark.parametrize("names", [("down_proj",), ("q_proj", "k_proj", "v_proj"), ("gate_proj",)])
def test_layers_that_offer_nothing_are_read_as_they_are(calls, names):
    llama = tiny_llama().eval()
    native, plain, *_ = both(llama, torch.int8, names=names)
    assert len(calls) == 6
    assert (native - plain).abs().max() < 1e-5


def test_what_is_not_a_number_stays_so():
    llama = tiny_llama().eval()
    prompt, steps = torch.randn(2, 4, 32), torch.randn(3, 2, 1, 32)
    steps[0, 1, 0, 7] = float("nan")
    with torch.no_grad(), offered(llama, torch.float32):
        made, cache = decoded(llama, prompt, steps)
    assert cache.step.on_cpu
    assert made[0].isfinite().all()
    assert made[1, 1:].isnan().all()


@pytest.mark.parametrize("choice", ["packed", "int8", "int4"])
def test_ways_of_linear_layers_reach_the_step(calls, choice):
    llama = tiny_llama(hidden_size=256, intermediate_size=512, init_std=0.02).eval()
    torch.manual_seed(0)
    prompt, steps = torch.randn(2, 4, 256), torch.randn(3, 2, 1, 256)
    with torch.no_grad(), fast_linears(choice, llama):
        native, _ = decoded(llama, prompt, steps)
        assert len(calls) == (3 if choice != "int4" or can_read_4_bits() else 0)
        with in_torch():
            plain, _ = decoded(llama, prompt, steps)
    # Of few bits both round what is between two halves, and one may do so the other way.
    assert (native - plain).abs().max() < (1e-5 if choice == "packed" else 1e-2)
    assert (native - plain).abs().mean() < 1e-3


def test_where_torch_takes_the_step(calls):
    llama = tiny_llama().eval()
    prompt, steps = torch.randn(2, 4, 32), torch.randn(2, 2, 1, 32)
    with torch.no_grad():
        decoded(llama, prompt, steps)  # nobody asks
        with offered(llama, torch.float32):
            many = FEW_ROWS + 1
            decoded(llama, torch.randn(many, 4, 32), torch.randn(1, many, 1, 32))
            llama.model.layers[0].mlp.up_proj.forward.weights = None  # as of 4 bits
            decoded(llama, prompt, steps)
            llama.model.layers[0].mlp.up_proj.forward.weights = [Weight(torch.zeros(8, 32))]  # of other sizes
            decoded(llama, prompt, steps)
    assert calls == []


def test_a_position_beyond_the_cache_is_refused():
    llama = tiny_llama().eval()
    with torch.no_grad(), offered(llama, torch.float32):
        cache = llama.new_cache(1, 6)
        llama(torch.randn(1, 4, 32), torch.arange(4)[None], Cached(0), cache)
        with pytest.raises(IndexError, match=r"positions \[6\] are not all below 6"):
            llama(torch.randn(1, 1, 32), torch.tensor([[6]]), Cached(4), cache)
        llama(torch.randn(1, 1, 32), torch.tensor([[5]]), Cached(4), cache)


def several(llama, plans, prompt, slots, dtype=torch.float32):
    """Run a prompt, then `slots` [B, S, M] under each plan; return hidden states in C and by the layers."""
    rows, length, further = len(prompt), prompt.shape[1], slots.shape[1]
    positions = torch.arange(length + further).expand(rows, -1)
    made = []
    for native in (True, False):
        with torch.no_grad(), offered(llama, dtype), contextlib.nullcontext() if native else in_torch():
            cache = llama.new_cache(rows, length + further)
            llama(prompt, positions[:, :length], Cached(0), cache)
            made.append([llama(slots, positions[:, length:], plan, cache) for plan in plans])
            made[-1].extend(each.clone() for pair in cache.layers.values() for each in pair)
            assert bool(cache.step.on_cpu) == native
    return made


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_several_slots_of_every_plan_give_what_the_layers_give(calls, groups, dtype):
    llama = tiny_llama(num_key_value_heads=groups).eval()
    torch.manual_seed(2)
    prompt, slots = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    padded = torch.tensor([[False, False, True, True, True], [True] * 5])
    padded = torch.cat((padded, padded.new_ones(2, 3)), 1)
    some = torch.rand(2, 3, 8) < 0.5
    some[:, range(3), range(5, 8)] = True
    plans = [
        Cached(5),
        Cached(5, block=3),
        Cached(5, block=2),
        Cached(5, padded),
        Cached(5, padded, block=3),
        Cached(5, some),
        Cached(5, some[:1].expand(2, -1, -1)),
    ]
    native, plain = several(llama, plans, prompt, slots, dtype)
    assert len(calls) == len(plans)
    for one, two in zip(native, plain, strict=True):
        assert (one - two).abs().max() < 1e-5


def test_slots_at_once_are_equal_to_the_last_bit_to_one_after_another():
    llama = tiny_llama(num_key_value_heads=2).eval()
    torch.manual_seed(3)
    prompt, slots = torch.randn(2, 4, 32), torch.randn(2, 7, 32)
    with torch.no_grad(), offered(llama, torch.float32):
        single, kept = decoded(llama, prompt, slots.transpose(0, 1)[:, :, None])
        cache = llama.new_cache(2, 11)
        positions = torch.arange(11).expand(2, -1)
        llama(prompt, positions[:, :4], Cached(0), cache)
        first = llama(slots[:, :3], positions[:, 4:7], Cached(4), cache)
        # Guesses that did not hold are written over.
        llama(torch.randn(2, 4, 32), positions[:, 7:], Cached(7), cache)
        last = llama(slots[:, 3:], positions[:, 7:], Cached(7), cache)
    assert torch.equal(torch.cat((first, last), 1), single[:, 1:])
    for mine, theirs in zip(cache.layers.values(), kept.layers.values(), strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_more_slots_than_pay_and_first_prompts_take_the_layers(calls):
    llama = tiny_llama().eval()
    with torch.no_grad(), offered(llama, torch.float32):
        cache = llama.new_cache(2, 80)
        positions = torch.arange(80).expand(2, -1)
        llama(torch.randn(2, 4, 32), positions[:, :4], Cached(0), cache)
        assert cache.step is None
        most = FEW_ROWS // 2
        llama(torch.randn(2, most + 1, 32), positions[:, 4 : most + 5], Cached(4), cache)
        assert calls == []
        llama(torch.randn(2, most, 32), positions[:, 4 : most + 4], Cached(4), cache)
        assert calls == [1]
        # The same slots as a first prompt's, over what the cache held.
        again = llama(torch.randn(2, 4, 32), positions[:, :4], Cached(0), cache)
        assert calls == [1]
        assert again.isfinite().all()
