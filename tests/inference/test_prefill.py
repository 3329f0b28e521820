"""Prompts as recorded graphs: what later slots see of them is what they see of plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from janus_plugins.core.contracts import Cached
from janus_plugins.inference import graph, prefill
from janus_plugins.inference.prefill import RecordedPrompts
from janus_plugins.inference.session import generate
from janus_plugins.inference.stream import Stream
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.testing.elsewhere import AWAY, elsewhere

from .test_integration import small_model


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return small_model()


@pytest.fixture
def language_model(model):
    with torch.inference_mode():
        yield model.language_model


def rows(language_model, *lengths: int) -> list[Tensor]:
    torch.manual_seed(sum(lengths))
    return [language_model.embed(torch.randint(0, 40, (length,))) for length in lengths]


@pytest.mark.parametrize("lengths", [(9, 9), (12, 5), (3, 3)])
@pytest.mark.parametrize("copies", [None, [0, 1, 0]])
def test_rows_go_on_as_plain_ones_do(language_model, lengths, copies):
    recorded = RecordedPrompts.of(language_model)
    given = rows(language_model, *lengths)
    for _ in range(2):  # the second time over what the first has left
        recorded.run(torch.randn(2, 14, given[0].shape[1]), torch.arange(14).expand(2, -1), None)
        plain, other = (Stream(language_model, given, 4, 60, copies, way) for way in (None, recorded))
        assert torch.allclose(plain.hidden, other.hidden, atol=1e-6)
        other.lengthen()
        for step in range(3):
            embeds = rows(language_model, len(plain.hidden) + step)[0][: len(plain.hidden)]
            plain.step(embeds)
            other.step(embeds)
            assert torch.allclose(plain.hidden, other.hidden, atol=1e-6)
        assert plain.shape == other.shape


def test_a_prompt_that_is_not_finite_spoils_none_after_it(language_model):
    recorded = RecordedPrompts.of(language_model)
    given = rows(language_model, 5, 4)
    spoilt = [torch.full_like(row, torch.nan) for row in rows(language_model, 12, 12)]
    Stream(language_model, spoilt, 4, 60, None, recorded)
    plain, other = (Stream(language_model, given, 4, 60, None, way) for way in (None, recorded))
    assert torch.allclose(plain.hidden, other.hidden, atol=1e-6)


def test_a_cache_holds_nothing_of_what_it_held_before(language_model):
    whole, short = language_model.new_cache(1, 9), language_model.new_cache(1, 3)
    for cache in (whole, short):
        slots = cache.length
        language_model(torch.randn(1, slots, 32), torch.arange(slots)[None], Cached(0), cache)
    whole.copy_(short)
    for layer, pair in whole.layers.items():
        for mine, theirs in zip(pair, short.layers[layer], strict=True):
            assert torch.equal(mine[:, :, :3], theirs)
            assert not mine[:, :, 3:].any()


def test_prompts_of_about_one_length_share_a_recording(language_model, monkeypatch):
    made = []
    monkeypatch.setattr(graph, "recorded", lambda call, *_: made.append(1) or call)
    monkeypatch.setattr(graph, "GRAIN", 8)
    recorded = RecordedPrompts.of(language_model)
    for lengths in ((3, 3), (8, 8), (5, 5), (9, 9), (5, 4), (5, 8)):
        Stream(language_model, rows(language_model, *lengths), 4, 60, None, recorded)
    assert len(made) == 3  # of 8 slots, of 16, and of 8 with padding


def test_few_recordings_are_kept_and_long_prompts_are_none(language_model, monkeypatch):
    monkeypatch.setattr(prefill, "MOST_SLOTS", 128)
    recorded = RecordedPrompts.of(language_model)
    assert recorded.takes(2, 64)
    assert not recorded.takes(2, 65)
    assert not recorded.takes(3, 1)
    monkeypatch.setattr(graph, "GRAIN", 2)
    for length in range(1, 20):
        Stream(language_model, rows(language_model, length), 4, 60, None, recorded)
    assert list(recorded._recordings) == [(1, length, True) for length in (14, 16, 18, 20)]


def test_other_language_models_run_as_they_are(model):
    class Other(torch.nn.Module):
        pass

    assert RecordedPrompts.of(Other()) is None


def test_a_recorded_prompt_waits_for_nothing_and_weights_may_change(model, monkeypatch):
    """On a stand-in for a device; what cannot wait there could not be recorded."""
    waits = []

    def recorded(call, *_):
        def counted() -> None:
            before = sum(mode.waits.values())
            call()
            waits.append(sum(mode.waits.values()) - before)

        return counted

    monkeypatch.setattr(graph, "recorded", recorded)
    monkeypatch.setattr(graph.GraphStep, "_compile", lambda self: self._step)
    here = copy.deepcopy(model)
    with elsewhere() as mode:
        away = copy.deepcopy(here).to(AWAY)
        for turn in range(2):
            for prompts in (["a seven"], ["one", "two three"]):
                settings = {"return_codes": True, "num_per_prompt": 2, "seed": turn}
                expected = generate(here, prompts, **settings)
                assert torch.equal(generate(away, prompts, compile=True, **settings), expected)
            for each in (here, away):
                with torch.no_grad():
                    for parameter in each.language_model.parameters():
                        parameter.neg_()
        asked = {"max_new_tokens": 9}
        for question in ("two one", ["three", "one two"]):
            assert away.ask(question, compile=True, **asked) == here.ask(question, **asked)
    for path in ("image", "text"):
        assert isinstance(graph._KEPT[away][path].prompts, RecordedPrompts)
    assert set(waits) == {0}


@pytest.mark.parametrize("first", [True, False])
def test_calls_in_and_outside_of_inference_mode_take_turns(first):
    here = small_model()
    with elsewhere(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph.GraphStep, "_compile", lambda self: self._step)
        away = copy.deepcopy(here).to(AWAY)
        for inside in (first, not first):
            with torch.inference_mode(inside):
                made = [generate(each, "a two", return_codes=True, compile=True) for each in (here, away)]
            assert torch.equal(*made)
