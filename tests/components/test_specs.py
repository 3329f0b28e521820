"""Every model component through its spec: facts equal behaviour, and what all of them must keep."""

import importlib

import pytest
import torch

from janus_plugins.adapters.code_mlp.spec import CODE_MLP_ADAPTER
from janus_plugins.adapters.mlp.spec import MLP
from janus_plugins.core.errors import WiringError
from janus_plugins.core.facts import GenerationFacts, LanguageModelFacts, UnderstandingFacts
from janus_plugins.core.kinds import Kind
from janus_plugins.encoders.siglip.spec import SIGLIP
from janus_plugins.encoders.vq.spec import VQ
from janus_plugins.heads.code_mlp.spec import CODE_MLP_HEAD
from janus_plugins.heads.text.spec import TEXT
from janus_plugins.language_models.spec import LLAMA
from tests.components.test_siglip import TINY as SIGLIP_TINY
from tests.components.test_vq import TINY as VQ_TINY
from tests.components.toys import SIZES, FixedDraws, alone

MODEL = LanguageModelFacts(
    width=32, vocab_size=61, max_positions=64, num_layers=2, num_heads=4, num_key_value_heads=4
)
SEEN = UnderstandingFacts(modality="image", width=32, tokens=16, max_tokens=16)
DRAWN = GenerationFacts(modality="image", form="codes", tokens=16, width=4, codebook_size=32, grid=(4, 4))
LATENT = GenerationFacts(
    modality="image", form="latents", tokens=16, width=6, codebook_size=None, grid=(4, 4)
)
CASES = {
    "llama": (LLAMA, {**SIZES, "max_positions": 64}, ()),
    "siglip": (SIGLIP, SIGLIP_TINY, ()),
    "vq": (VQ, VQ_TINY, ()),
    "mlp": (MLP, {}, (SEEN, MODEL)),
    "mlp deep": (MLP, {"depth": 3, "width": 8}, (SEEN, MODEL)),
    "mlp latents": (MLP, {"depth": 1}, (LATENT, MODEL)),
    "code-mlp": (CODE_MLP_ADAPTER, {}, (DRAWN, MODEL)),
    "text": (TEXT, {"chunk": 3}, (None, MODEL)),
    "code-mlp head": (CODE_MLP_HEAD, {"chunk": 3, "width": 12}, (DRAWN, MODEL)),
}


def factory(spec):
    module, name = spec.factory.split(":")
    return getattr(importlib.import_module(module), name)


def make(case, seed=0):
    spec, options, neighbours = CASES[case]
    config = spec.config(**options)
    facts = config.facts(*neighbours)
    torch.manual_seed(seed)
    return spec, config, facts, factory(spec)(config, facts)


def output(case, module):
    """Run a component once as its kind is run; returns every tensor that comes out."""
    spec, _, facts, _ = make(case)
    torch.manual_seed(3)
    if spec.kind is Kind.LANGUAGE_MODEL:
        plan, positions = alone(5)
        return (module(torch.randn(1, 5, facts.width), positions, plan),)
    if spec.kind is Kind.UNDERSTANDING_ENCODER:
        return (module({"pixels": torch.randn(2, 3, 16, 16)}),)
    if spec.kind is Kind.GENERATION_ENCODER:
        ids = module.encode({"pixels": torch.randn(2, 3, 16, 16)})
        return ids, module.decode(ids)
    if spec.kind is Kind.ADAPTER:
        codes = torch.randint(facts.codebook_size, (2, 7)) if facts.accepts == "codes" else None
        return (module(torch.randn(2, 7, facts.in_width) if codes is None else codes),)
    hidden = torch.randn(8, facts.in_width)
    draws = FixedDraws(torch.rand(8))
    ids = module.sample(hidden, hidden.flip(0), guidance=2.0, temperature=1.0, draws=draws)
    return module.logits(hidden), module.loss(hidden, ids), ids


@pytest.mark.parametrize("case", CASES)
def test_seeds_are_reproducible(case):
    first, same, other = (make(case, seed)[-1].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("case", CASES)
def test_state_dict_round_trip(case):
    first, second = make(case, 1)[-1].eval(), make(case, 2)[-1].eval()
    before = output(case, second)
    second.load_state_dict(first.state_dict())
    pairs = list(zip(output(case, first), output(case, second), strict=True))
    assert all(torch.equal(*pair) for pair in pairs)
    assert any(not torch.equal(*pair) for pair in zip(before, output(case, second), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_kept_and_inputs_are_brought_to_it(case):
    module = make(case)[-1].to(torch.bfloat16)
    made = [each for each in output(case, module) if each.is_floating_point()]
    assert made[0].dtype == torch.bfloat16
    assert all(each.isfinite().all() for each in made)
    if len(made) == 2:
        assert made[1].dtype == torch.float32  # a head's loss


@pytest.mark.parametrize("case", CASES)
def test_the_meta_device_gives_the_same_shapes(case):
    spec, config, facts, module = make(case)
    with torch.device("meta"):
        empty = factory(spec)(config, facts)
    shapes = {name: each.shape for name, each in module.state_dict().items()}
    assert {name: each.shape for name, each in empty.state_dict().items()} == shapes
    assert all(each.is_meta for each in empty.parameters())


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_learns(case):
    module = make(case)[-1].train()
    if case == "vq":
        loss = module.reconstruction_loss({"pixels": torch.randn(2, 3, 16, 16)})["loss"]
    elif "head" in case or case == "text":
        loss = module.loss(torch.randn(8, 32), torch.arange(8)).sum()
    else:
        loss = output(case, module)[0].square().sum()
    loss.backward()
    idle = {name for name, each in module.named_parameters() if each.grad is None or not each.grad.any()}
    assert idle <= {"model.embed_tokens.weight"}  # embeds ids before, not inside, forward


@pytest.mark.parametrize(
    ("case", "shape"),
    [("mlp", (2, 7, 32)), ("mlp deep", (2, 7, 32)), ("mlp latents", (2, 7, 32)), ("code-mlp", (2, 7, 32))],
)
def test_adapters_keep_tokens_and_reach_the_width(case, shape):
    _, config, facts, module = make(case)
    assert output(case, module)[0].shape == shape
    assert facts.out_width == 32
    assert config.output_tokens(7) == 7


def count(spec, neighbours, **options):
    config = spec.config(**options)
    with torch.device("meta"):
        module = factory(spec)(config, config.facts(*neighbours))
    return {name: sum(each.numel() for each in part.parameters()) for name, part in module.named_children()}


def test_reference_parameter_counts():
    model = LanguageModelFacts(
        width=2048,
        vocab_size=102400,
        max_positions=16384,
        num_layers=24,
        num_heads=16,
        num_key_value_heads=16,
    )
    siglip, vq = SIGLIP.config().facts(), VQ.config().facts()
    assert count(MLP, (siglip, model)) == {"layers": 6_295_552}
    assert count(CODE_MLP_ADAPTER, (vq, model)) == {"table": 131_072, "layers": 4_214_784}
    head = count(CODE_MLP_HEAD, (vq, model))
    assert sum(head.values()) == 37_767_168
    assert list(head) == ["output_mlp_projector", "vision_head"]
    assert count(TEXT, (None, model)) == {"output": 102400 * 2048}


def test_facts_tell_wiring_what_does_not_fit():
    adapter = CODE_MLP_ADAPTER.config()
    assert adapter.facts(SEEN, MODEL).accepts == "codes"
    assert adapter.facts(SEEN, MODEL).codebook_size is None
    assert MLP.config().facts(LATENT, MODEL).accepts == "latents"
    assert TEXT.config().facts(DRAWN, MODEL).predicts == "text"
    head = CODE_MLP_HEAD.config().facts(DRAWN, MODEL)
    assert (head.predicts, head.size, head.in_width) == ("codes", 32, 32)
    with pytest.raises(WiringError, match="latents of width 6"):
        CODE_MLP_HEAD.config().facts(LATENT, MODEL)
    with pytest.raises(WiringError, match="asked to predict text"):
        CODE_MLP_HEAD.config().facts(None, MODEL)


def test_the_code_table_starts_from_the_codebook_unless_told_otherwise():
    encoder, adapter = make("vq")[-1], make("code-mlp")[-1]
    adapter.init_table(encoder.codebook())
    assert torch.equal(adapter.table.weight, encoder.codebook())
    assert adapter.table.weight.requires_grad
    with pytest.raises(WiringError, match=r"\(32, 4\), but the encoder's codebook is \(16, 4\)"):
        adapter.init_table(encoder.codebook()[:16])
    config = CODE_MLP_ADAPTER.config(init_table="random")
    random = factory(CODE_MLP_ADAPTER)(config, config.facts(DRAWN, MODEL))
    before = random.table.weight.clone()
    random.init_table(encoder.codebook())
    assert torch.equal(random.table.weight, before)


@pytest.mark.parametrize("case", ["text", "code-mlp head"])
def test_heads_lose_what_they_say_and_sample_under_guidance(case):
    module = make(case)[-1]
    hidden, other, targets = torch.randn(8, 32), torch.randn(8, 32), torch.arange(8)
    logits, base = module.logits(hidden), module.logits(other)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(module.loss(hidden, targets), expected, atol=1e-6)
    greedy = module.sample(hidden, other, guidance=3.0, temperature=0.0, draws=FixedDraws(torch.zeros(8)))
    assert torch.equal(greedy, (base + 3 * (logits - base)).argmax(-1))
    plain = module.sample(hidden, None, guidance=3.0, temperature=0.0, draws=FixedDraws(torch.zeros(8)))
    assert torch.equal(plain, logits.argmax(-1))
    lowest = module.sample(hidden, None, guidance=1.0, temperature=1.0, draws=FixedDraws(torch.zeros(8)))
    assert torch.equal(lowest, torch.zeros(8, dtype=torch.int64))


def test_processors_and_specs_are_named_rightly():
    for spec, options, _ in CASES.values():
        assert callable(factory(spec))
        assert spec.summary
        if spec.processor is not None:
            module, name = spec.processor.split(":")
            processor = getattr(importlib.import_module(module), name)(spec.config(**options))
            assert processor.num_tokens(processor.dummy()) == 16
