"""The ways of computing linear layers: equal, close, put back, and never where they do not fit."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from janus_plugins.core.errors import JanusPluginsError, RunFileError
from janus_plugins.core.native.build import can_run
from janus_plugins.core.native.products import FEW_ROWS, Products
from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.inference import linears
from janus_plugins.inference.linears import FEW_BITS, fast_linears
from janus_plugins.model.compose import compose_plan

from .test_integration import WIDE


class Alone(nn.Linear):
    is_linear_alone = True

    def forward(self, source, scale=None):
        return super().forward(source) if scale is None else super().forward(source) * scale


@pytest.fixture(params=["in C", "without"])
def way(request, monkeypatch):
    """Take products in C, and do without them, as on a machine that cannot have them."""
    if request.param == "without":
        monkeypatch.setattr(linears, "can_run", lambda: False)
        monkeypatch.setattr(Products, "of", classmethod(lambda cls, weights: None))
    elif not can_run():
        pytest.skip("this machine has no products in C")
    return request.param


def layers(bias=True, kind=nn.Linear):
    torch.manual_seed(0)
    return nn.Sequential(kind(256, 192, bias=bias), nn.GELU(), kind(192, 256, bias=bias)).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 256), (1, 3, 256), (FEW_ROWS + 1, 256)])
def test_packed_layers_give_the_same_numbers(way, bias, shape):
    model, source = layers(bias), torch.randn(shape)
    in_c = way == "in C" and source.numel() // 256 <= FEW_ROWS
    with torch.no_grad(), fast_linears("packed", model):
        made = [model(source) for _ in range(linears._CALLS_BEFORE + 2)]
        ways = [layer.forward for layer in (model[0], model[2])]
        assert all((one.fast is None) == in_c for one in ways)
    expected = model(source)
    assert torch.equal(made[0], made[-1] if in_c else expected)
    assert made[-1].shape == expected.shape
    assert (made[-1] - expected).abs().max() < 1e-5


def test_a_few_rows_and_many_take_turns():
    model, sources = layers(), [torch.randn(rows, 256) for rows in (2, FEW_ROWS + 8)]
    with torch.no_grad(), fast_linears("packed", model):
        made = [model(sources[turn % 2]) for turn in range(4 * linears._CALLS_BEFORE)][-2:]
    for one, source in zip(made, sources, strict=True):
        assert (one - model(source)).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
def test_under_autocast_layers_take_rows_of_either_format(way, rows):
    model, source = layers(), torch.randn(rows, 256)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(source)
        with fast_linears("packed", model):
            for one in [source, source.to(torch.bfloat16)] * (linears._CALLS_BEFORE + 2):
                torch.testing.assert_close(model(one).float(), expected.float(), atol=2e-2, rtol=2e-2)


@pytest.mark.skipif(not can_run(), reason="this machine has no products in C")
def test_layers_in_bf16_sum_up_in_fp32_where_the_cpu_does_not(monkeypatch):
    monkeypatch.setattr(linears, "is_slow", lambda dtype, device: True)
    model, source = layers().to(torch.bfloat16), torch.randn(2, 256).to(torch.bfloat16)
    with torch.no_grad(), fast_linears("packed", model):
        made = [layer(source.expand(2, 256)[:, : layer.in_features]) for layer in (model[0], model[2])]
    for one, layer in zip(made, (model[0], model[2]), strict=True):
        exact = source[:, : layer.in_features].float() @ layer.weight.float().T + layer.bias.float()
        assert (
            torch.equal(one, exact.to(torch.bfloat16))
            or (one - exact).abs().max() < 2**-8 * exact.abs().max()
        )
    monkeypatch.setattr(linears, "is_slow", lambda dtype, device: False)
    with fast_linears("packed", model):
        assert "forward" not in vars(model[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_8_bits_rows_are_close_and_mind_no_mates(way, dtype):
    model = layers().to(dtype)
    source = (torch.randn(3, 256) * torch.tensor([[1.0], [100.0], [1e-3]])).to(dtype)
    with torch.no_grad(), fast_linears("int8", model):
        made, alone = model(source), model(source[:1])
    expected = model.float()(source.float())
    assert made.dtype == dtype
    assert not torch.equal(made, expected)
    assert ((made - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.03
    assert torch.equal(made[:1], alone)


def test_in_8_bits_rows_are_rounded_alike_in_any_company(way):
    layer, source = nn.Linear(192, 192, bias=False), torch.randn(3 * FEW_ROWS, 192)
    with torch.no_grad(), fast_linears("int8", layer):
        made, alone = layer(source), torch.cat([layer(row) for row in source.split(1)])
    assert (made == alone).float().mean() > 0.99  # the rest are sums in another order, next to a rounding
    assert torch.equal(made, made.bfloat16().float())
    assert (made - alone).abs().max() <= made.abs().max() / 100


def test_in_8_bits_each_weight_is_within_half_a_step(way):
    torch.manual_seed(1)
    layer = nn.Linear(256, 192, bias=False)
    with torch.no_grad(), fast_linears("int8", layer):
        made = layer(torch.eye(256))  # each row of it is one column of the weight
    step = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    off = (made.T - layer.weight.detach()).abs()
    assert (off <= 0.5 * step + 0.01 * layer.weight.abs()).all()  # scales and answers are bf16


def double(weight):
    with torch.no_grad():
        weight.mul_(2)


def double_data(weight):
    weight.data.mul_(2)


def optimise(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


def test_a_librarys_own_kind_of_tensor_is_left_alone():
    class Quantised(torch.Tensor):
        def reshape(self, *shape):
            raise NotImplementedError

    plain = torch.ones(4)
    odd = plain.as_subclass(Quantised)
    assert linears.state_of([odd, plain]) == linears.state_of([odd, plain])
    before = linears.state_of([odd, plain])
    plain.data[2] = 0
    assert linears.state_of([odd, plain]) != before


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (128, 128), (96, 30), (7, 1), (1, 5), (12, 4, 3, 3)])
def test_a_row_or_a_column_that_nobody_counted_is_noticed(shape):
    weight = torch.ones(shape)
    before = linears.state_of([weight])
    for row in range(shape[0]):
        weight.data[row] = 0
        assert linears.state_of([weight]) != before
        weight.data[row] = 1
    for column in range(weight[0].numel()):
        weight.data.view(shape[0], -1)[:, column] = 0
        assert linears.state_of([weight]) != before
        weight.data.view(shape[0], -1)[:, column] = 1
    assert linears.state_of([weight]) == before


def test_what_comes_to_lie_in_anothers_place_is_another():
    """Memory is used again: a function, or a module, may get the address of the one before."""
    holder, seen = nn.Sequential(nn.LeakyReLU(0.1)), []
    for slope in range(20):
        holder[0] = None
        holder[0] = nn.LeakyReLU(slope)
        holder[0].forward = lambda source, slope=slope: source * slope
        seen.append(linears.hung_on(holder.modules()))
        assert linears.hung_on(holder.modules()) == seen[-1]
        del holder[0].forward
        holder[0].forward = lambda source, slope=slope: source + slope
        seen.append(linears.hung_on(holder.modules()))
    assert all(one != other for place, one in enumerate(seen) for other in seen[:place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_what_is_weighed_on_a_device_differs_where_a_number_does(dtype):
    numbers = torch.randn(1000).round().to(dtype)
    before = int(linears._weighed(numbers))
    assert int(linears._weighed(numbers.clone())) == before
    for place in (0, 1, 511, 999):
        other = numbers.clone()
        other[place] = 1 - other[place].int()
        assert int(linears._weighed(other)) != before
    seen = {int(linears._weighed(each)) for each in (numbers, numbers.flip(0), numbers.roll(1), numbers[:-1])}
    assert len(seen) == 4


@pytest.mark.parametrize("change", [double, double_data, optimise])
@pytest.mark.parametrize("choice", FEW_BITS)
def test_weights_of_few_bits_are_kept_until_they_change(choice, change, monkeypatch):
    made, source = [], torch.randn(2, 256)

    def make(weight, bias):
        made.append(weight)
        return functools.partial(nn.functional.linear, weight=weight, bias=bias)

    monkeypatch.setitem(linears._MAKERS, choice, make)
    model, unused = layers(), nn.Linear(256, 256)
    for _ in range(2):
        with torch.no_grad(), fast_linears(choice, model, unused):
            model(source)
            assert len(made) == 2
    change(model[0].weight)
    with torch.no_grad(), fast_linears(choice, model, unused):
        model(source)
        assert len(made) == 3


def test_in_4_bits_each_weight_is_within_half_a_step_of_its_group():
    torch.manual_seed(1)
    layer = nn.Linear(256, 192)
    with torch.no_grad(), fast_linears("int4", layer):
        made = layer(torch.eye(256))  # each row of it is one column of the weight, and the bias
    groups = layer.weight.detach().view(192, 8, 32)
    step = ((groups.amax(2) - groups.amin(2)) / 15).repeat_interleave(32, 1)
    off = (made.T - layer.bias.detach()[:, None] - layer.weight.detach()).abs()
    assert (off <= 0.5 * step + 0.01 * layer.weight.abs().max()).all()  # scales and answers are bf16
    assert off.mean() > 0.1 * step.mean()


def test_in_4_bits_rows_mind_no_mates():
    model, source = layers(), torch.randn(3, 256)
    with torch.no_grad(), fast_linears("int4", model):
        made, alone = model(source), model(source[:1])
    expected = model(source)
    assert ((made - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.15
    assert torch.equal(made[:1], alone)


@pytest.mark.parametrize("choice", FEW_BITS)
@pytest.mark.parametrize("sizes", [(250, 208), (256, 200)])
def test_sizes_that_a_product_of_few_bits_cannot_read_stay(way, choice, sizes):
    odd, source = nn.Linear(*sizes), torch.randn(3, sizes[0])
    with torch.no_grad(), fast_linears(choice, odd):
        made = odd(source)
    assert torch.equal(made, odd(source))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16, 17, FEW_ROWS, FEW_ROWS + 1])
def test_weights_in_8_bits_are_the_same_ones_for_few_rows_and_for_many(way, rows, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(192, linears._PART + 64).to(dtype)
    source = torch.randn(2, rows, 192, dtype=dtype)[:1]
    with torch.no_grad(), fast_linears("int8", layer):
        made = layer(source)
        kept = layer.forward.fast
    whole = kept.whole.float() * kept.scale[:, None].float()
    exact = (source.bfloat16().float() @ whole.T).bfloat16().float() + layer.bias.float()
    assert made.dtype == dtype
    assert made.shape == (1, rows, len(kept.whole))
    limit = 5e-4 if dtype == torch.float32 else 5e-3  # a sum next to a rounding goes either way
    assert (made - exact).norm() / exact.norm() < limit


@pytest.mark.parametrize("choice", ["packed", "int8", "int4"])
def test_layers_of_one_input_join(way, choice):
    torch.manual_seed(0)
    pair, source = nn.ModuleList([nn.Linear(256, 192), nn.Linear(256, 320)]), torch.randn(2, 256)
    with torch.no_grad(), fast_linears(choice, pair):
        joined = pair[0].forward.joined(list(pair))
        for _ in range(linears._CALLS_BEFORE + 2):
            made = joined(source)
        assert (joined.fast is None) == (way == "in C" and choice == "packed")
        assert pair[0].forward.joined([pair[0], nn.Linear(256, 192)]) is None
    expected = torch.cat([layer(source) for layer in pair], -1)
    assert (made - expected).norm() / expected.norm() < {"packed": 1e-5, "int8": 0.03, "int4": 0.15}[choice]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (torch.zeros(2, 5), "shapes"),
        (torch.zeros(2, 256, dtype=torch.float64), "dtype"),
        (torch.zeros(2, 0), "shapes"),
    ],
)
def test_layers_are_put_back_also_after_an_error(way, source, told):
    model = layers()
    with pytest.raises(RuntimeError, match=told), fast_linears("packed", model):
        model(source)
    assert all("forward" not in vars(layer) for layer in model)


def test_layers_are_put_back_where_setting_up_was_broken_off(monkeypatch):
    model, make, made = layers(), linears._stand_in, []

    def stop(*args):
        if made:
            raise KeyboardInterrupt
        made.append(make(*args))
        return made[0]

    monkeypatch.setattr(linears, "_stand_in", stop)
    with pytest.raises(KeyboardInterrupt), fast_linears("packed", model):
        pass
    assert made
    assert all("forward" not in vars(layer) for layer in model)


@pytest.mark.parametrize("inner", ["plain", "int8"])
def test_a_call_within_another_computes_in_its_own_way(inner):
    model, source = layers(), torch.randn(2, 256)
    with torch.no_grad():
        with fast_linears(inner, model):
            expected = model(source)
        with fast_linears("packed", model):
            before = [vars(layer).get("forward") for layer in model]
            with fast_linears(inner, model):
                assert torch.equal(model(source), expected)
            assert any(before)
            assert [vars(layer).get("forward") for layer in model] == before


@pytest.mark.parametrize("choice", ["packed", "int8"])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_layers_are_not_copied_while_something_stands_in_for_them(way, choice, copied):
    model, source = layers(), torch.randn(2, 256)
    with torch.no_grad(), fast_linears(choice, model):
        for _ in range(6):
            model(source)
        with pytest.raises(JanusPluginsError, match="while it answers; do it before the call or after"):
            copied(model)
        with fast_linears("plain", model):
            copied(model)
    copied(model)


def test_layers_that_something_hangs_on_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(linears, "can_run", lambda: False)
    model = nn.ModuleDict({
        "hooked": nn.Linear(256, 256),
        "derived": type("Derived", (nn.Linear,), {})(256, 256),
        "bf16": nn.Linear(256, 256, dtype=torch.bfloat16),
        "small": nn.Linear(8, 8),
        "alone": Alone(256, 256),
    })  # fmt: skip
    model["hooked"].register_forward_hook(lambda *_: None)
    with fast_linears("packed", model):
        assert [name for name, layer in model.items() if "forward" in vars(layer)] == ["alone"]
    monkeypatch.setattr(linears, "can_run", lambda: True)
    monkeypatch.setattr(linears, "is_slow", lambda dtype, device: True)
    with fast_linears("packed", model):
        touched = [name for name, layer in model.items() if "forward" in vars(layer)]
        assert touched == ["bf16", "alone"]


def test_further_arguments_reach_the_layer_itself():
    model, source = Alone(256, 256), torch.randn(2, 256)
    with torch.no_grad(), fast_linears("int8", model):
        assert torch.equal(model(source, 2.0), nn.functional.linear(source, model.weight, model.bias) * 2.0)


@pytest.fixture(scope="module")
def wide():
    return compose_plan(resolve(load_run_text(WIDE, "wide.yaml")))


def test_a_model_chooses_the_same_codes_and_words_either_way(wide):
    made = {
        choice: wide.generate("a seven", num_per_prompt=3, temperature=0.7, linears=choice, return_codes=True)
        for choice in linears.LINEARS
    }
    assert torch.equal(made["packed"], made["plain"])
    assert made["int8"].shape == made["plain"].shape
    asked = [wide.ask("which?", max_new_tokens=12, linears=choice) for choice in ("packed", "plain")]
    assert asked[0] == asked[1]


def test_an_unknown_way_is_refused(wide):
    with pytest.raises(RunFileError, match="linears is 'int3'; it must be one of packed, plain, int8, int4"):
        wide.generate("a seven", linears="int3")
