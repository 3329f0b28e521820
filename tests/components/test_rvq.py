"""The codec that is trained here: running means, restarts, the same on every rank, and its loss."""

import copy

import pytest
import torch

from janus_plugins.core.errors import RunFileError
from janus_plugins.encoders.codecs import residual
from janus_plugins.encoders.codecs.residual import ResidualQuantizer
from janus_plugins.encoders.codecs.rvq_spec import RVQ, RvqConfig
from tests.components.keeps import made

TINY = RvqConfig.tiny()


def frames(count=200, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_each_codebook_quantises_what_is_left():
    quantizer = ResidualQuantizer(3, 5, 4, 0.9, 0.0)
    given = frames()
    codes, summed = quantizer(given)
    left = given
    for place in range(3):
        nearest = torch.cdist(left, quantizer.vectors[place]).argmin(-1)
        assert torch.equal(codes[:, place], nearest)
        left = left - quantizer.vectors[place][nearest]
    assert torch.allclose(given - left, summed, atol=1e-6)
    assert torch.allclose(quantizer.summed(codes), summed, atol=1e-6)


def test_codes_move_to_the_running_mean_of_their_frames():
    quantizer = ResidualQuantizer(1, 3, 4, 0.75, 0.0)
    quantizer.sums.copy_(quantizer.vectors)
    quantizer.counts.fill_(1.0)
    before, given = quantizer.vectors.clone(), frames()
    codes, _ = quantizer(given, learn=True)
    for code in range(3):
        mine = given[codes[:, 0] == code]
        expected = (0.75 * before[0, code] + 0.25 * mine.sum(0)) / (0.75 + 0.25 * len(mine))
        assert torch.allclose(quantizer.vectors[0, code], expected, atol=1e-5)


def test_learning_halves_the_distance_and_uses_every_code():
    torch.manual_seed(0)
    quantizer, given = ResidualQuantizer(2, 16, 4, 0.9, 0.5), frames(400)
    first = (given - quantizer(given)[1]).square().mean()
    for _ in range(30):
        quantizer(given, learn=True)
    codes, summed = quantizer(given)
    assert (given - summed).square().mean() < first / 2
    assert [len(codes[:, place].unique()) for place in range(2)] == [16, 16]


def test_batches_of_one_step_move_the_codebooks_as_one():
    """However many batches `engine.accumulate` makes of a step."""
    torch.manual_seed(0)
    start = ResidualQuantizer(2, 8, 4, decay=0.5, restart_below=0.0)
    start.counts.fill_(1.0)
    start.sums.copy_(start.vectors)
    many = copy.deepcopy(start)
    many.set_accumulation(4)
    for _ in range(3):
        given = frames()[:64]
        start(given, learn=True)
        before = many.vectors.clone()
        for index, part in enumerate(given.split(16)):
            assert index == 0 or torch.equal(many.vectors, before)
            many(part, learn=True)
        assert torch.allclose(many.vectors, start.vectors, atol=1e-6)
        assert torch.allclose(many.counts, start.counts)
    assert not any("new" in name for name in many.state_dict())


def test_a_code_that_nobody_chooses_starts_again_on_a_frame():
    quantizer, given = ResidualQuantizer(1, 3, 4, 0.9, 0.1), frames(50)
    quantizer(given, learn=True)
    quantizer.vectors[0, 1], quantizer.counts[0, 1] = 1e3, 0.0
    quantizer._restart(0, given)
    assert (quantizer.vectors[0, 1] == given).all(-1).any()


def test_ranks_learn_from_the_frames_of_all(monkeypatch):
    """Two ranks, one after the other: what is summed over them is as if one had all frames."""
    parts, sent = frames(40).chunk(2), []
    one = ResidualQuantizer(1, 3, 4, 0.9, 0.0)
    one.sums.copy_(one.vectors)
    one.counts.fill_(1.0)
    two = ResidualQuantizer(1, 3, 4, 0.9, 0.0)
    two.load_state_dict(one.state_dict())
    one(torch.cat(parts), learn=True)
    codes = torch.cdist(parts[1], two.vectors[0]).argmin(-1)
    other = [torch.zeros(3, 4).index_add_(0, codes, parts[1]), torch.bincount(codes, minlength=3).float()]

    monkeypatch.setattr(residual, "_ranks", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda drawn, source: sent.append(source))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda given: given.add_(other.pop(0)))
    two(parts[0], learn=True)
    assert sent == [0]
    assert torch.allclose(one.vectors, two.vectors, atol=1e-5)


def test_sixteen_bits_are_too_coarse_to_learn_in():
    codec = made(RVQ, TINY).to(torch.bfloat16)
    items = {"samples": torch.randn(2, 1, codec.config.samples)}
    codec.eval().reconstruction_loss(items)
    with pytest.raises(RunFileError, match=r"engine\.precision: fp32"):
        codec.train().reconstruction_loss(items)


def test_the_loss_is_its_weighted_parts_and_only_training_moves_the_codebooks():
    codec = made(RVQ, TINY)
    items = {"samples": torch.randn(2, 1, codec.config.samples)}
    before = codec.quantizer.vectors.clone()
    losses = codec.reconstruction_loss(items)
    expected = 4 * losses["samples"] + losses["spectra"] + 0.25 * losses["commitment"]
    assert torch.allclose(losses["loss"], expected)
    assert 1 <= losses["codes_used"] <= 8
    assert torch.equal(codec.quantizer.vectors, before)
    codec.train().reconstruction_loss(items)
    assert not torch.equal(codec.quantizer.vectors, before)


def test_windows_longer_than_a_sound_are_refused():
    with pytest.raises(ValueError, match="the longest is more than a sound, 32 samples"):
        RvqConfig(**{**TINY, "loss": {"windows": (8, 64)}})
