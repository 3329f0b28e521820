"""A component that does not keep its contract is named, with what it answered and what to do."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from PIL import Image
from torch import nn

import janus_plugins as jp
from janus_plugins.core.catalogue import load_factory
from janus_plugins.core.errors import BadSample, PluginError
from janus_plugins.core.kinds import Kind
from janus_plugins.model import compose
from janus_plugins.model.compose import compose_plan

READER, CODER = "understanding.image.encoder", "generation.image.encoder"


@pytest.fixture
def fresh(plan):
    return compose_plan(plan)


def cut(answer):
    return answer[:, :-1]


def cut_rows(answer):
    return answer[:-1]


def raising(*_):
    raise KeyError("maps")


def explaining(*_):
    raise BadSample("explained")


CASES = {
    "features without their width": (
        "understanding.image.encoder.forward", lambda answer: answer[..., 0],
        [READER, "its features are [3, 4], but", "tensor [N=3, T=4, width=16]"],
    ),
    "one feature too few": (
        "understanding.image.encoder.forward", cut, [READER, "[3, 3, 16]", "T=4"],
    ),
    "features that are narrower": (
        "understanding.image.encoder.forward", lambda answer: answer[..., :5], [READER, "[3, 4, 5]", "width=16"],
    ),
    "a tuple": ("understanding.image.encoder.forward", lambda answer: (answer,), [READER, "are a tuple"]),
    "whole numbers": ("understanding.image.encoder.forward", lambda answer: answer.long(), [READER, "torch.int64"]),
    "an adapter of another width": (
        "understanding.image.adapter.forward", lambda answer: answer[..., 1:], ["understanding.image.adapter", "width"],
    ),
    "an adapter's whole numbers": (
        "understanding.image.adapter.forward", lambda answer: (9 * answer).long(),
        ["understanding.image.adapter", "its embeddings are torch.int64, not floating point"],
    ),
    "embeddings of codes that are whole": (
        "generation.image.adapter.forward", lambda answer: (9 * answer).long(),
        ["generation.image.adapter", "its embeddings are torch.int64, not floating point"],
    ),
    "an adapter of another device": (
        "understanding.image.adapter.forward", lambda answer: answer.to("meta"),
        ["understanding.image.adapter", "its embeddings are on meta, but what it was given is on cpu"],
    ),
    "losses that are whole": (
        "generation.image.head.loss", lambda answer: answer.long(), ["generation.image.head", "losses are torch.int64"],
    ),
    "codes of an item too few": (
        "generation.image.encoder.encode", lambda answer: answer[:-1], [CODER, "its codes are [2, ", "N=3"],
    ),
    "codes of another shape": ("generation.image.encoder.encode", cut, [CODER, "its codes are", "T="]),
    "codes that are not whole": (
        "generation.image.encoder.encode", lambda answer: answer.float(), [CODER, "its codes are torch.float32"],
    ),
    "embeddings of codes that are too few": (
        "generation.image.adapter.forward", cut, ["generation.image.adapter", "its embeddings are"],
    ),
    "a mean of losses": (
        "generation.image.head.loss", lambda answer: answer.mean(), ["generation.image.head", "its losses are []"],
    ),
    "hidden states that are narrower": (
        "language_model.forward", lambda answer: answer[..., 1:],
        ["language_model: language_model/llama", "its hidden states are [2, ", "31]", "width=32"],
    ),
    "no hidden states": ("language_model.forward", lambda answer: None, ["language_model: ", "are a NoneType"]),
    "hidden states that are whole": (
        "language_model.forward", lambda answer: answer.long(), ["language_model: ", "states are torch.int64, not floating"],
    ),
    "hidden states of another device": (
        "language_model.forward", lambda answer: answer.to("meta"), ["language_model: ", "hidden states are on meta"],
    ),
    "embeddings of ids that are narrower": (
        "language_model.embed", lambda answer: answer[..., 1:], ["language_model: ", "its embeddings of ids are ["],
    ),
    "a text head's mean": (
        "language_model.text_head.loss", lambda answer: answer.mean(), ["language_model.text_head", "losses"],
    ),
}  # fmt: skip


def wrap(monkeypatch, model, place, change):
    owner, _, name = place.rpartition(".")
    module = model.get_submodule(owner)
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **named: change(whole(*given, **named)))


@pytest.mark.parametrize("name", CASES)
def test_answers_are_held_to_the_facts(name, fresh, batch_of, prepared, monkeypatch):
    place, change, words = CASES[name]
    wrap(monkeypatch, fresh, place, change)
    batch = batch_of([[*prepared["read"], *prepared["draw"]], prepared["sort"]])
    with pytest.raises(PluginError) as caught:
        fresh(batch, dict.fromkeys(batch.targets(), 1.0))
    told = str(caught.value)
    for word in (*words, "janus-plugins check janus-plugins/"):
        assert word in told, told


@pytest.mark.parametrize(
    "place",
    [
        "understanding.image.encoder.forward",
        "understanding.image.adapter.forward",
        "generation.image.encoder.encode",
        "generation.image.adapter.forward",
        "generation.image.head.loss",
        "language_model.embed",
        "language_model.forward",
    ],
)
def test_what_a_component_raises_names_it(place, fresh, batch_of, prepared, monkeypatch):
    batch = batch_of([[*prepared["read"], *prepared["draw"]]])
    wrap(monkeypatch, fresh, place, raising)
    with pytest.raises(
        PluginError, match=rf"{place.rpartition('.')[0]}: .* of janus-plugins .*KeyError: 'maps'"
    ):
        fresh(batch, dict.fromkeys(batch.targets(), 1.0))
    monkeypatch.undo()
    wrap(monkeypatch, fresh, place, explaining)
    with pytest.raises(BadSample, match=r"^explained$"):
        fresh(batch, dict.fromkeys(batch.targets(), 1.0))


MAKING = {
    "a sample a row too few": (
        "head.sample", cut_rows, ["generation.image.head", "its codes are [", "B="],
    ),
    "samples beside others": (
        "head.sample", lambda answer: answer[:, None], ["generation.image.head", ", 1], but", "[B="],
    ),
    "a sample that is not whole": (
        "head.sample", lambda answer: answer.float(), ["generation.image.head", "torch.float32"],
    ),
    "a code below the first": (
        "head.sample", lambda answer: answer * 0 - 1, ["generation.image.head", "codes reach from -1 to -1", CODER, "0 to "],
    ),
    "a code past the last": (
        "head.sample", lambda answer: answer * 0 + 10**6, ["generation.image.head", "codes reach from 1000000 to 1000000"],
    ),
    "a tuple of pictures": (
        "encoder.decode", lambda answer: (answer,), [CODER, "its decoded items are a tuple"],
    ),
    "no picture": ("encoder.decode", lambda answer: answer[:0], [CODER, "its decoded items are [0, ", "N=1"]),
    "pictures of no shape": (
        "encoder.decode", lambda answer: answer[..., 0], [CODER, "restore() of [1, 3, 8] float32 failed"],
    ),
    "whole numbers of codes": (
        "adapter.forward", lambda answer: (9 * answer).long(), ["generation.image.adapter", "its embeddings are torch.int64"],
    ),
    "nothing embedded": ("adapter.forward", raising, ["generation.image.adapter", "embedding [", "KeyError: 'maps'"]),
    "nothing sampled": ("head.sample", raising, ["generation.image.head", "sampling from [", "KeyError: 'maps'"]),
    "nothing decoded": ("encoder.decode", raising, [CODER, "decoding [1, ", "KeyError: 'maps'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKING)
def test_answers_are_held_to_the_facts_when_items_are_made(name, fresh, monkeypatch):
    place, change, words = MAKING[name]
    wrap(monkeypatch, fresh, f"generation.image.{place}", change)
    with pytest.raises(PluginError) as caught:
        fresh.generate("a digit", num_per_prompt=2)
    told = str(caught.value)
    for word in (*words, "janus-plugins check janus-plugins/"):
        assert word in told, told


def test_later_codes_are_held_to_the_facts(fresh, monkeypatch):
    """The first is looked at by itself; a table of codes answers -1 as its last."""
    number = itertools.count()
    wrap(monkeypatch, fresh, "generation.image.head.sample", lambda answer: answer - 16 * (next(number) == 2))
    with pytest.raises(
        PluginError, match=r"generation\.image\.head: .* codes reach from -\d+ to -?\d+, but codes"
    ):
        fresh.generate("a digit", num_per_prompt=2)


@pytest.mark.parametrize(
    ("name", "doing"), [("sample", "sampling from"), ("distribution", "the distribution of")]
)
def test_what_a_head_raises_later_names_it(name, doing, fresh, monkeypatch):
    number = itertools.count()

    def later(answer):
        return answer if next(number) < 2 else raising()

    wrap(monkeypatch, fresh, f"generation.image.head.{name}", later)
    with pytest.raises(
        PluginError, match=rf"generation\.image\.head: .* of janus-plugins .*{doing} \[.*KeyError: 'maps'"
    ):
        fresh.generate("a digit", decoding="steps" if name == "sample" else "jacobi")


@pytest.mark.parametrize("pictured", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda answer: answer[..., 1:], "hidden states are ["), (raising, "reading embeddings")],
)
def test_what_a_language_model_answers_is_held_to_the_facts(pictured, change, said, fresh, monkeypatch):
    """When it answers and when it draws; the head after it is not to blame."""
    wrap(monkeypatch, fresh, "language_model.forward", change)
    with pytest.raises(
        PluginError, match=r"^language_model: language_model/llama of janus-plugins"
    ) as caught:
        fresh.generate("a two", seed=0) if pictured else fresh.ask("Put in order: two one", max_new_tokens=2)
    assert said in str(caught.value)


@pytest.mark.parametrize("interleaved", [False, True])
def test_what_a_text_head_raises_names_it(interleaved, fresh, monkeypatch):
    wrap(monkeypatch, fresh, "language_model.text_head.logits", raising)
    with pytest.raises(
        PluginError, match=r"language_model\.text_head: .* of janus-plugins .*the logits of \[.*KeyError"
    ):
        fresh.generate("a digit", interleaved=True) if interleaved else fresh.ask("which digit?")


@pytest.mark.parametrize("part", ["encoder", "adapter"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_item_that_is_read_as_no_numbers_is_not_answered_about(part, value, fresh, monkeypatch):
    """Its answer was empty, without a word."""

    def spoilt(answer):
        answer = answer.clone()
        answer[1, 0, 0] = value
        return answer

    wrap(monkeypatch, fresh, f"understanding.image.{part}.forward", spoilt)
    shown = [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "red")]
    with pytest.raises(
        PluginError, match=rf"{READER}: .* of item 1 holds NaN or infinite values, \d+ of \d+ in"
    ):
        fresh.ask("which digit?", images=shown)


def test_codes_that_there_are_not_are_no_answer_to_an_item(fresh, batch_of, prepared, monkeypatch):
    batch = batch_of([[*prepared["draw"]]])
    wrap(monkeypatch, fresh, f"{CODER}.encode", lambda answer: answer - 16)
    with pytest.raises(
        PluginError, match=rf"{CODER}: .* its codes reach from -\d+ to -?\d+, but codes of {CODER}"
    ):
        fresh.encode("image", [Image.new("RGB", (16, 16))])
    with pytest.raises(
        PluginError, match=rf"{CODER}: .* its codes reach from -\d+ to -?\d+, but codes of {CODER}"
    ):
        fresh(batch, dict.fromkeys(batch.targets(), 1.0))


def test_codes_are_held_to_the_facts_when_items_are_encoded(fresh, monkeypatch):
    wrap(monkeypatch, fresh, f"{CODER}.encode", cut)
    with pytest.raises(PluginError, match=rf"{CODER}: .* its codes are .*T="):
        fresh.encode("image", [Image.new("RGB", (16, 16))])


@pytest.mark.parametrize("counted", [1, 3, 5])
def test_a_processor_that_counts_other_tokens_is_named(counted, fresh, batch_of, prepared):
    """Counted too low, the rest of each picture would never be seen."""
    batch = batch_of([prepared["read"]])
    items = batch.understanding["image"]
    batch.understanding["image"] = dataclasses.replace(items, entering=(counted,) * len(items.entering))
    with pytest.raises(
        PluginError, match=rf"{READER}: .*4 features.* its processor's num_tokens counts {counted}"
    ):
        fresh(batch, dict.fromkeys(batch.targets(), 1.0))


def test_the_line_is_told(fresh, batch_of, prepared, monkeypatch):
    """A batch without its tensors breaks inside the encoder itself."""
    batch = batch_of([prepared["read"]])
    batch.understanding["image"].items.clear()
    with pytest.raises(PluginError, match=r"siglip/\w+\.py:\d+: KeyError") as caught:
        fresh(batch, dict.fromkeys(batch.targets(), 1.0))
    assert isinstance(caught.value.__cause__, KeyError)


def test_memory_that_is_missing_is_nobodys_fault(fresh, batch_of, prepared, monkeypatch):
    batch = batch_of([prepared["read"]])
    for error in (torch.OutOfMemoryError, MemoryError):

        def stop(*_, error=error):
            raise error("none left")

        wrap(monkeypatch, fresh, "understanding.image.encoder.forward", stop)
        with pytest.raises(error, match="none left"):
            fresh(batch, dict.fromkeys(batch.targets(), 1.0))
        monkeypatch.undo()


@pytest.fixture
def reader_also(monkeypatch):
    """Let the understanding encoder do something more when it is built."""

    def use(more):
        def load(spec):
            factory = load_factory(spec)
            if spec.kind != Kind.UNDERSTANDING_ENCODER:
                return factory

            def build(config, facts):
                built = factory(config, facts)
                more(built)
                return built

            return build

        monkeypatch.setattr(compose, "load_factory", load)

    return use


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("layer", [nn.LazyLinear, nn.LazyBatchNorm1d])
def test_a_lazy_layer_is_refused_when_it_is_built(plan, reader_also, layer, device):
    """It was trained, saved, and fitted no model that was built anew."""
    sizes = () if layer is nn.LazyBatchNorm1d else (4,)
    reader_also(lambda built: built.add_module("late", layer(*sizes)))
    with pytest.raises(PluginError, match=rf"{READER}.*late\.\w+ has no size before a first batch"):
        compose_plan(plan, device=device)


def test_a_buffer_that_is_computed_of_weights_and_not_kept_is_named(plan, reader_also, tmp_path):
    def more(built):
        total = next(built.parameters()).detach().sum(0)
        built.register_buffer("total", total, persistent=False)

    reader_also(more)
    compose_plan(plan).save(tmp_path / "model")
    with pytest.raises(PluginError, match=rf"{READER}.*encoder\.total is computed of weights.*persistent"):
        jp.load(tmp_path / "model")
