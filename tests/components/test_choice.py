"""The loss and the choice that heads over classes share."""

import pytest
import torch
from torch.nn import functional

from janus_plugins.core.choice import choose, guide, linear_cross_entropy
from tests.components.toys import FixedDraws


def losses(chunk, bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, requires_grad=True)
    weight = torch.randn(7, 6, requires_grad=True)
    shift = torch.randn(7, requires_grad=True) if bias else None
    targets = torch.randint(7, (10,))
    loss = linear_cross_entropy(hidden, weight, shift, targets, chunk)
    scale = torch.arange(10.0)
    (loss * scale).sum().backward()
    expected = functional.cross_entropy(functional.linear(hidden, weight, shift), targets, reduction="none")
    return loss, expected, [each.grad for each in (hidden, weight, shift) if each is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 5, 9])
def test_chunks_change_neither_loss_nor_gradient(chunk, bias):
    whole, expected, wanted = losses(10, bias)
    parts, _, grads = losses(chunk, bias)
    assert torch.allclose(whole, expected)
    assert torch.allclose(parts, whole, atol=1e-6)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(grads, wanted, strict=True))


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch):
    rows = []
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda x, *rest: rows.append(len(x)) or linear(x, *rest))
    losses(4)[0]
    # twice forward and once more in backward; the last call is the expectation's own
    assert max(rows[:-1]) == 4
    assert sum(rows[:-1]) == 20


def test_no_positions_still_reach_every_parameter():
    weight = torch.randn(7, 6, requires_grad=True)
    loss = linear_cross_entropy(torch.zeros(0, 6), weight, None, torch.zeros(0, dtype=torch.int64), 4)
    assert loss.shape == (0,)
    loss.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(7, 6))


def test_guidance():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    assert guide(conditional, None, 5.0) is not None
    assert torch.equal(guide(conditional, None, 5.0), conditional)
    assert torch.allclose(guide(conditional, unconditional, 5.0), torch.tensor([[3.0, -2.0]]))
    assert guide(conditional.bfloat16(), None, 1.0).dtype == torch.float32


def test_greedy_takes_the_likeliest_and_draws_nothing():
    logits = torch.randn(5, 9)
    assert torch.equal(choose(logits, temperature=0, draws=None), logits.argmax(-1))


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    for temperature, shares in ((1.0, [0.1, 0.2, 0.3, 0.4]), (0.5, [1 / 30, 4 / 30, 9 / 30, 16 / 30])):
        ids = choose(logits.expand(20_000, 4), temperature=temperature, draws=FixedDraws(numbers))
        found = torch.bincount(ids, minlength=4) / 20_000
        assert torch.allclose(found, torch.tensor(shares), atol=0.015)


def test_a_row_does_not_see_its_mates():
    torch.manual_seed(0)
    logits, numbers = torch.randn(16, 1000), torch.rand(16)
    together = choose(logits, temperature=1.0, draws=FixedDraws(numbers))
    apart = [
        choose(logits[row : row + 1], temperature=1.0, draws=FixedDraws(numbers[row : row + 1]))
        for row in range(16)
    ]
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-24])
def test_the_ends_of_the_interval_give_possible_classes(number):
    logits = torch.full((1, 6), -torch.inf)
    logits[0, 2:4] = 0.0
    chosen = choose(logits, temperature=1.0, draws=FixedDraws(torch.tensor([number])))
    assert chosen.item() in (2, 3)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 2}, {2, 3}),
        ({"top_p": 0.4}, {3}),
        ({"top_p": 0.5}, {2, 3}),
        ({"top_p": 0.95}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.99}, {1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
    ],
    ids=str,
)
def test_top_k_and_top_p_keep_the_likeliest(options, kept):
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1000, 4)
    numbers = torch.linspace(0, 1 - 1e-6, 1000)
    ids = choose(logits, temperature=1.0, draws=FixedDraws(numbers), **options)
    assert set(ids.tolist()) == kept


def test_the_likeliest_is_kept_where_top_p_rounds_to_0_in_float32():
    logits = torch.tensor([0.2, 0.5, 0.2, 0.1]).log().expand(10, 4)  # not the last class
    numbers = torch.linspace(0, 1 - 1e-6, 10)
    assert set(choose(logits, temperature=1.0, draws=FixedDraws(numbers), top_p=1e-50).tolist()) == {1}
