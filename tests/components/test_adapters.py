"""Adapters that change the token count: facts equal behaviour, order, lengths, published projectors."""

import pytest
import torch
from safetensors.torch import save_file

from janus_plugins.adapters.conv.spec import CONV
from janus_plugins.adapters.linear.spec import LINEAR
from janus_plugins.adapters.mlp.spec import MLP
from janus_plugins.adapters.perceiver.spec import PERCEIVER
from janus_plugins.adapters.pixel_shuffle.model import shuffled
from janus_plugins.adapters.pixel_shuffle.spec import PIXEL_SHUFFLE, PixelShuffleConfig
from janus_plugins.core.errors import CheckpointError, WiringError
from janus_plugins.core.facts import GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.model.unified import UnderstandingPath
from tests.components.keeps import load

MODEL = LanguageModelFacts(
    width=24, vocab_size=61, max_positions=64, num_layers=2, num_heads=4, num_key_value_heads=4
)
LATENT = GenerationFacts(
    modality="image", form="latents", tokens=16, width=6, codebook_size=None, grid=(4, 4)
)


def seen(tokens=16, most=16, width=12):
    return UnderstandingFacts(modality="image", width=width, tokens=tokens, max_tokens=most)


PERCEIVER_TINY = {"tokens": 5, "depth": 2, "num_heads": 2, "head_width": 4}
CASES = {
    "mlp": (MLP, {}, seen(), 16),
    "linear": (LINEAR, {"norm": True}, seen(), 16),
    "linear bare": (LINEAR, {"bias": False}, seen(), 16),
    "linear latents": (LINEAR, {}, LATENT, 16),
    "pixel-shuffle": (PIXEL_SHUFFLE, {}, seen(), 4),
    "pixel-shuffle tiles": (PIXEL_SHUFFLE, {"grid": (2, 4), "width": 7}, seen(None, 16), 4),
    "perceiver": (PERCEIVER, PERCEIVER_TINY, seen(), 5),
    "perceiver lengths": (PERCEIVER, {**PERCEIVER_TINY, "width": 8}, seen(None), 5),
    "conv": (CONV, {"factor": 3, "kernel": 5}, seen(None), 5),
    "conv grid": (CONV, {"dims": 2, "kernel": 4}, seen(), 4),
    "conv tiles": (CONV, {"dims": 2, "grid": (2, 4)}, seen(None, 16), 4),
}


def make(case, seed=0):
    spec, options, source, _ = CASES[case]
    config = spec.config(**options)
    facts = config.facts(source, MODEL)
    torch.manual_seed(seed)
    return config, facts, load(spec.factory)(config, facts)


def features(facts, items=3, tokens=16):
    return torch.randn(items, tokens, facts.in_width, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("case", CASES)
def test_shapes_are_those_of_the_facts_and_items_keep_to_themselves(case):
    config, facts, adapter = make(case)
    given = features(facts)
    answer = adapter(given)
    assert answer.shape == (3, config.output_tokens(16), facts.out_width) == (3, CASES[case][3], 24)
    assert adapter(given[:0]).shape == (0, *answer.shape[1:])
    for row in range(3):
        assert torch.allclose(adapter(given[row : row + 1])[0], answer[row], atol=1e-6)
    assert adapter.to(torch.bfloat16)(given).dtype == torch.bfloat16


@pytest.mark.parametrize("case", [case for case in CASES if case != "mlp"])  # which loads no weights
def test_everything_learns_and_comes_back_from_a_file(case, tmp_path):
    _, facts, adapter = make(case)
    adapter(features(facts)).square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in adapter.parameters())
    save_file(adapter.state_dict(), tmp_path / "model.safetensors")
    other = make(case, 1)[2]
    assert not torch.equal(other(features(facts)), adapter(features(facts)))
    other.load_weights(str(tmp_path))
    assert torch.equal(other(features(facts)), adapter(features(facts)))
    with torch.device("meta"):
        assert all(each.is_meta for each in make(case)[2].parameters())
    save_file({"stray": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        other.load_weights(str(tmp_path))


# Of each adapter, lengths of an item that it can be given: of grids only whole tiles.
LENGTHS = [
    ("mlp", (1, 7, 15)),
    ("linear", (1, 7, 15)),
    ("conv", (1, 2, 7, 15)),
    ("conv tiles", (8,)),
    ("pixel-shuffle tiles", (8,)),
    ("perceiver lengths", (1, 7, 15)),
]


@pytest.mark.parametrize(("case", "length"), [(case, each) for case, several in LENGTHS for each in several])
@pytest.mark.parametrize("fill", [0.0, 7.0, float("inf")])
def test_a_short_item_is_the_same_alone_and_beside_a_longer_one(case, length, fill):
    config, facts, adapter = make(case)
    given = features(facts)
    given[0, length:] = fill  # whatever the encoder left there
    count = config.output_tokens(length)
    assert count >= 1
    encoder = Given()
    path = UnderstandingPath(encoder, adapter)
    alone = path({"features": given[:1, :length]}, [length])[0, :count]
    together = path({"features": given}, [length, 16, 16])
    assert torch.allclose(alone, together[0, :count], atol=1e-6)
    assert torch.allclose(together[1], path({"features": given[1:2]}, [16])[0], atol=1e-6)


class Given(torch.nn.Module):
    """Answers the features that it is given."""

    def forward(self, items):
        return items["features"]


class Counting(torch.nn.Module):
    """Keeps what it is called with."""

    def __init__(self):
        super().__init__()
        self.called = []

    def forward(self, source, lengths=None):
        self.called.append(None if lengths is None else lengths.tolist())
        return source


def test_lengths_are_given_where_items_differ_and_where_they_are_asked_for():
    given, adapter = torch.zeros(2, 5, 3), Counting()
    path = UnderstandingPath(Given(), adapter)
    path({"features": given}, [5, 5])
    path({"features": given}, [5, 2])
    path({"features": given}, [3, 3])  # an encoder that answers more features than count
    assert adapter.called == [None, [5, 2], [3, 3]]
    assert UnderstandingPath(Given(), torch.nn.Linear(3, 4))({"features": given}, [5, 2]).shape == (2, 5, 4)


def test_what_pads_an_item_gets_no_gradient():
    for case in ("conv", "perceiver lengths"):
        config, facts, adapter = make(case)
        given = features(facts).requires_grad_()
        adapter(given, torch.tensor([6, 16, 16]))[0, : config.output_tokens(6)].sum().backward()
        assert given.grad[0, :6].any()
        assert not given.grad[0, 6:].any()


def test_a_perceiver_of_an_older_file_says_padding():
    assert PERCEIVER.config(padding="zeros").facts(seen(None), MODEL).out_width == MODEL.width


def test_a_square_of_features_lies_side_by_side_top_row_first():
    given = torch.arange(16.0).reshape(1, 16, 1)
    joined = shuffled(given, PixelShuffleConfig())
    assert joined[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_shuffling_equals_that_of_internvl():
    from transformers.models.internvl.modeling_internvl import InternVLModel

    given = features(make("pixel-shuffle")[1])
    theirs = InternVLModel.pixel_shuffle(None, given.reshape(3, 4, 4, 12), scale_factor=0.5)
    assert torch.equal(shuffled(given, PixelShuffleConfig()), theirs.reshape(3, 4, 48))


@pytest.mark.parametrize("layout", ["transformers", "official"])
def test_the_projector_of_a_whole_internvl_loads(tmp_path, layout):
    _, facts, published = make("pixel-shuffle", 4)
    names = {"layer_norm.": "mlp1.0.", "linear_1.": "mlp1.1.", "linear_2.": "mlp1.3."}
    tensors = {"model.language_model.x": torch.zeros(2)}
    for name, each in published.state_dict().items():
        layer = name.split(".")[0] + "."
        theirs = names[layer] + name.removeprefix(layer)
        tensors[f"model.multi_modal_projector.{name}" if layout == "transformers" else theirs] = each
    save_file(tensors, tmp_path / "model.safetensors")
    adapter = make("pixel-shuffle")[2]
    adapter.load_weights(str(tmp_path))
    assert torch.equal(adapter(features(facts)), published(features(facts)))


def test_the_projector_of_llava_loads(tmp_path):
    _, facts, published = make("linear latents", 4)
    tensors = {
        f"model.mm_projector.{name.removeprefix('linear.')}": each
        for name, each in published.state_dict().items()
    }
    save_file(tensors, tmp_path / "mm_projector.safetensors")
    adapter = make("linear latents")[2]
    adapter.load_weights(str(tmp_path / "mm_projector.safetensors"))
    assert torch.equal(adapter(features(facts)), published(features(facts)))


@pytest.mark.parametrize(
    ("spec", "options", "source", "message"),
    [
        (PIXEL_SHUFFLE, {}, LATENT, "each of the 16 latents of a generated item needs its own slot"),
        (PIXEL_SHUFFLE, {}, seen(25, 25), "merges 2 x 2 tokens, but the encoder's lie in 5 x 5"),
        (PIXEL_SHUFFLE, {}, seen(15, 15), "15 tokens are no square; set grid"),
        (PIXEL_SHUFFLE, {}, seen(None), "set grid: .rows, columns. of one tile"),
        (CONV, {"dims": 2, "grid": (4, 6)}, seen(), "grid 4 x 6 is 24 tokens, but the encoder makes 16"),
        (PERCEIVER, {}, LATENT, "use it on an understanding path"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(spec, options, source, message):
    with pytest.raises(WiringError, match=message):
        spec.config(**options).facts(source, MODEL)


def test_windows_that_skip_features_are_refused():
    with pytest.raises(ValueError, match="kernel 2 is smaller than factor 3"):
        CONV.config(factor=3, kernel=2)
    with pytest.raises(ValueError, match="differ by an even number"):
        CONV.config(dims=2, kernel=3)
