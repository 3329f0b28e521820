"""Several codes a slot: the depth head against slow loops, the summed tables, and both beside one codebook."""

import pytest
import torch
from torch.nn import functional

from janus_plugins.adapters.code_sum.spec import CODE_SUM, CodeSumConfig
from janus_plugins.core.choice import choose
from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.heads.depth.spec import DEPTH, DepthConfig
from janus_plugins.inference.sampling import SeededDraws
from tests.components.keeps import made

MODEL = LanguageModelFacts(
    width=24, vocab_size=61, max_positions=64, num_layers=2, num_heads=4, num_key_value_heads=4
)
Q, K = 4, 11
SOUND = GenerationFacts("audio", "codes", tokens=5, width=6, codebook_size=K, grid=(5,), codebooks=Q)
LINE = GenerationFacts("audio", "codes", tokens=5, width=6, codebook_size=K, grid=(5,))
TINY = {"width": 16, "layers": 2, "num_heads": 2}


def head(seed=0, **options):
    module = made(DEPTH, {**TINY, **options}, seed, SOUND, MODEL)
    with torch.no_grad():  # larger than it starts, so that what it attends to shows
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def states(count=6, seed=1):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, MODEL.width, generator=draw)
    return hidden, torch.randint(K, (count, Q), generator=draw)


def logits_of(module, hidden, before):
    """Logits [K] of the code after `before`, by a whole pass over one frame."""
    stream = module.enter(hidden)[None] + module.places(torch.arange(len(before) + 1))
    for place, code in enumerate(before):
        stream[place + 1] += module.codes(torch.tensor(place * K + code))
    stream = stream[None]
    for block in module.blocks:
        stream = block(stream)
    return module.outputs[len(before)](module.norm(stream)[0, -1])


@pytest.mark.parametrize(("reduce", "over"), [("sum", 1), ("mean", Q)])
def test_the_loss_is_that_of_each_code_given_those_before(reduce, over):
    module, (hidden, codes) = head(loss=reduce), states()
    with torch.no_grad():
        losses = module.loss(hidden, codes)
        for row, frame in enumerate(codes.tolist()):
            expected = sum(
                functional.cross_entropy(logits_of(module, hidden[row], frame[:q]), codes[row, q])
                for q in range(Q)
            )
            assert losses[row].item() == pytest.approx(expected.item() / over, rel=1e-5)


def test_a_code_knows_the_codes_before_it_and_no_other():
    module, (hidden, codes) = head(), states(1)
    changed = codes.clone()
    changed[0, 2] = (changed[0, 2] + 1) % K
    kept = []
    module.outputs[0].register_forward_hook(lambda _, given, answer: kept.append(given[0]))
    module.outputs[3].register_forward_hook(lambda _, given, answer: kept.append(given[0]))
    with torch.no_grad():
        module.loss(hidden, codes), module.loss(hidden, changed)
    assert torch.equal(kept[0], kept[2])
    assert not torch.allclose(kept[1], kept[3])


@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 0.0), (3.0, 0.0), (3.0, 1.0)])
def test_samples_equal_a_loop_without_a_cache(guidance, temperature):
    module, (hidden, _), (other, _) = head(), states(3), states(3, 2)
    beside = None if guidance == 1 else other
    with torch.no_grad():
        seen = module.sample(
            hidden, beside, guidance=guidance, temperature=temperature, draws=SeededDraws([4, 5, 6])
        )
        for row, seed in enumerate((4, 5, 6)):
            draws, frame = SeededDraws([seed]), []
            for _ in range(Q):
                logits = logits_of(module, hidden[row], frame)
                if beside is not None:
                    base = logits_of(module, other[row], frame)
                    logits = base + guidance * (logits - base)
                frame.append(int(choose(logits[None], temperature=temperature, draws=draws)))
            assert seen[row].tolist() == frame
    assert len(seen.unique()) > 3


def test_only_the_likeliest_are_drawn_where_asked():
    module, (hidden, _) = head(top_k=1), states(4)
    with torch.no_grad():
        drawn = module.sample(hidden, None, guidance=1.0, temperature=5.0, draws=SeededDraws(range(4)))
        greedy = module.sample(hidden, None, guidance=1.0, temperature=0.0, draws=SeededDraws(range(4)))
    assert torch.equal(drawn, greedy)


def test_chunks_change_no_loss_and_no_gradient():
    whole, cut, (hidden, codes) = head(), head(chunk=2), states()
    for module in (whole, cut):
        module.loss(hidden, codes).sum().backward()
    assert torch.allclose(whole.loss(hidden, codes), cut.loss(hidden, codes), atol=1e-5)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-4)


def test_code_sum_adds_a_vector_of_each_codebook():
    adapter = made(CODE_SUM, {"depth": 1}, 0, SOUND, MODEL)
    codes = torch.randint(K, (2, 5, Q), generator=torch.Generator().manual_seed(3))
    rows = adapter.table.weight.view(Q, K, -1)
    summed = sum(rows[q][codes[..., q]] for q in range(Q))
    with torch.no_grad():
        assert torch.allclose(adapter(codes), adapter.layers(summed), atol=1e-6)
        assert adapter(codes[:0]).shape == (0, 5, MODEL.width)


def test_tables_start_as_the_codebooks_in_proportion():
    books = torch.randn(Q, K, 6, generator=torch.Generator().manual_seed(5))
    books *= torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None, None]
    adapter = made(CODE_SUM, {}, 0, SOUND, MODEL)
    adapter.init_table(books)
    rows = adapter.table.weight.detach().view(Q, K, 6)
    assert torch.allclose(rows / rows[0, 0, 0], books / books[0, 0, 0], atol=1e-4)
    assert rows.square().sum(-1).mean(1).sum().item() == pytest.approx(1.0, rel=1e-5)
    adapter.init_table(torch.zeros(Q, K, 6))
    assert adapter.table.weight.isfinite().all()
    with pytest.raises(WiringError, match=r"\(4, 11, 6\).*\(44, 6\)"):
        adapter.init_table(books.flatten(0, 1))
    kept = made(CODE_SUM, {"init_table": "random"}, 0, SOUND, MODEL)
    before = kept.table.weight.clone()
    kept.init_table(books)
    assert torch.equal(kept.table.weight, before)


@pytest.mark.parametrize("config", [CodeSumConfig(), DepthConfig()], ids=["code-sum", "depth"])
def test_one_codebook_is_for_other_components(config):
    latents = GenerationFacts("audio", "latents", tokens=5, width=6, codebook_size=None, grid=(5,))
    with pytest.raises(WiringError, match="code-mlp"):
        config.facts(LINE, MODEL)
    with pytest.raises(WiringError, match="name another"):
        config.facts(latents, MODEL)


def test_features_and_text_are_refused_too():
    with pytest.raises(WiringError, match="has none"):
        CodeSumConfig().facts(UnderstandingFacts("audio", 6, 5, 5), MODEL)
    with pytest.raises(WiringError, match="predict text"):
        DepthConfig().facts(None, MODEL)


def test_heads_of_attention_divide_the_width():
    with pytest.raises(ValueError, match="width 16 is no multiple of num_heads 3"):
        DepthConfig(width=16, num_heads=3)
