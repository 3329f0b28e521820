"""The language models against transformers' own, and their facts against what is built."""

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from janus_plugins.core.contracts import Cached
from janus_plugins.core.errors import CheckpointError, PluginError, RunFileError
from janus_plugins.language_models.model import build, build_causal
from janus_plugins.language_models.spec import CausalLmConfig, LlamaConfig
from tests.components.toys import SIZES, alone, packed_rows, text_head, tiny_llama

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "qwen2 tied": ("Qwen2Config", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "phi": ("PhiConfig", {}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A tiny published model: (transformers' own, its folder)."""
    name, extra = FAMILIES[request.param]
    torch.manual_seed(1)
    config = getattr(transformers, name)(**SHAPE, **extra)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    folder = tmp_path_factory.mktemp("published")
    theirs.save_pretrained(folder)
    return theirs, str(folder)


def loaded(folder):
    config = CausalLmConfig(folder=folder)
    facts = config.facts()
    torch.manual_seed(2)
    ours = build_causal(config, facts).eval()
    bias = "lm_head.bias" in torch_keys(folder)
    ours.attach_text_head(text_head(facts, bias=bias))
    ours.load_weights(folder)
    return ours, facts


def torch_keys(folder):
    from safetensors import safe_open

    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        return set(file.keys())


def test_published_weights_give_transformers_own_logits(family):
    theirs, folder = family
    ours, facts = loaded(folder)
    config = theirs.config
    assert (facts.width, facts.vocab_size, facts.num_layers, facts.num_heads) == (32, 61, 2, 4)
    assert facts.num_key_value_heads == getattr(config, "num_key_value_heads", 4)
    assert facts.max_positions == 64
    assert facts.tied == config.tie_word_embeddings
    ids = torch.randint(61, (2, 11))
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits
        plan, positions = packed_rows([[11], [11]], 11)
        packed = ours.text_head.logits(ours(ours.embed(ids), positions, plan))
        cache = ours.new_cache(2, 11)
        cached = [ours(ours.embed(ids[:, :6]), positions[:, :6], Cached(0), cache)]
        for at in range(6, 11):
            cached.append(ours(ours.embed(ids[:, at : at + 1]), positions[:, at : at + 1], Cached(at), cache))
        stepwise = ours.text_head.logits(torch.cat(cached, 1))
    assert (packed - expected).abs().max() < 1e-5
    assert (stepwise - expected).abs().max() < 1e-4


def test_loading_keeps_the_number_type(family):
    _, folder = family
    config = CausalLmConfig(folder=folder)
    ours = build_causal(config, config.facts())
    bias = "lm_head.bias" in torch_keys(folder)
    ours.attach_text_head(text_head(config.facts(), bias=bias))
    ours.to(torch.bfloat16).load_weights(folder)
    assert {each.dtype for each in ours.parameters()} == {torch.bfloat16}
    plan, positions = alone(5)
    assert ours(torch.randn(1, 5, 32), positions, plan).dtype == torch.bfloat16


@pytest.fixture
def llama_folder(tmp_path):
    torch.manual_seed(3)
    theirs = LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    theirs.save_pretrained(tmp_path)
    return theirs, tmp_path


def test_a_llama_of_given_sizes_takes_published_weights(llama_folder):
    theirs, folder = llama_folder
    ours = tiny_llama(max_positions=64)
    ours.load_weights(str(folder))
    ids = torch.randint(61, (1, 9))
    plan, positions = alone(9)
    with torch.no_grad():
        made = ours.text_head.logits(ours(ours.embed(ids), positions, plan))
        assert (made - theirs(ids, use_cache=False).logits).abs().max() < 1e-5


def test_pickled_weights_load_and_foreign_objects_are_refused(llama_folder):
    theirs, folder = llama_folder
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    ours = tiny_llama()
    ours.load_weights(str(folder))
    assert torch.equal(ours.text_head.output.weight, theirs.lm_head.weight)
    torch.save({**theirs.state_dict(), "evil": Evil(folder / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        ours.load_weights(str(folder))
    assert not (folder / "ran").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def resave(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight"),
        (lambda t: t.update(stray=torch.zeros(2)), "stray"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(9)}),
            r"1 of another shape \(model.norm.weight \(9,\) instead of \(32,\)\)",
        ),
    ],
    ids=["missing", "unexpected", "head missing", "shape"],
)
def test_every_key_is_accounted_for(llama_folder, change, named):
    _, folder = llama_folder
    resave(folder, change)
    with pytest.raises(CheckpointError, match=named):
        tiny_llama().load_weights(str(folder))


def test_what_is_not_there_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        tiny_llama().load_weights(str(tmp_path / "nowhere"))
    (tmp_path / "file.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="name the folder"):
        tiny_llama().load_weights(str(tmp_path / "file.safetensors"))


def test_a_folder_sets_the_sizes_of_a_llama(llama_folder):
    theirs, folder = llama_folder
    config = LlamaConfig(folder=str(folder))
    ours = build(config, config.facts())
    ours.attach_text_head(text_head(config.facts()))
    assert sum(each.numel() for each in ours.parameters()) == theirs.num_parameters()


def test_a_config_without_its_defaults_is_a_llama_of_the_official_7b(tmp_path):
    written = {"model_type": "llama", "vocab_size": 102400, "num_hidden_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps({**written, "max_position_embeddings": 16384}))
    facts = LlamaConfig(folder=str(tmp_path)).facts()
    assert (facts.width, facts.num_heads, facts.num_layers, facts.tied) == (4096, 32, 30, False)


def test_the_reference_model_has_the_reference_number_of_parameters():
    config = LlamaConfig(
        vocab_size=102400, hidden_size=2048, intermediate_size=5632, num_layers=24, num_heads=16
    )
    with torch.device("meta"):
        model = build(config, config.facts())
        model.attach_text_head(text_head(config.facts()))
    assert sum(each.numel() for each in model.parameters()) == 1_652_656_128


@pytest.mark.parametrize(
    "rounded", [lambda model: model.to("cpu", torch.bfloat16), lambda model: model.half()]
)
def test_rotary_frequencies_stay_precise_in_any_dtype(rounded):
    model = tiny_llama()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("inv_freq" in name for name in before)
    whole = torch.nn.ModuleDict({"language_model": model})
    rounded(whole)
    assert next(model.parameters()).dtype != torch.float32
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32, name
        assert torch.equal(buffer, before[name]), name


def test_tied_weights_are_one_parameter():
    model = tiny_llama(tie=True)
    names = [name for name, _ in model.named_parameters()]
    assert "text_head.output.weight" not in names
    assert model.text_head.output.weight is model.model.embed_tokens.weight
    model.text_head.loss(torch.randn(3, 32), torch.tensor([1, 2, 3])).sum().backward()
    assert model.model.embed_tokens.weight.grad is not None
    with pytest.raises(PluginError, match="output_layer"):
        model.attach_text_head(torch.nn.Linear(32, 61))


def test_seeds_are_reproducible():
    first, same, other = tiny_llama(7), tiny_llama(7), tiny_llama(8)
    pairs = zip(first.state_dict().items(), same.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for (_, ours), theirs in pairs)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_state_dict_round_trip():
    first, second = tiny_llama(1), tiny_llama(2)
    second.load_state_dict(first.state_dict())
    plan, positions = alone(6)
    embeds = torch.randn(1, 6, 32)
    assert torch.equal(first(embeds, positions, plan), second(embeds, positions, plan))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({**SIZES, "folder": "x"}, "'folder' sets every size"),
        ({"vocab_size": 5}, "set hidden_size, intermediate_size, num_layers, num_heads"),
        ({**SIZES, "num_heads": 5}, "hidden_size 32 must be an even multiple of num_heads 5"),
        ({**SIZES, "num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_key_value_heads 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        LlamaConfig(**options)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        (None, "no config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "JSON object"),
        ('{"model_type": "gpt2"}', "use causal-lm"),
    ],
)
def test_a_folder_without_a_usable_config_is_refused(tmp_path, written, named):
    if written is not None:
        (tmp_path / "config.json").write_text(written)
    with pytest.raises(RunFileError, match=named):
        LlamaConfig(folder=str(tmp_path)).facts()


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(RunFileError, match="no folder"):
        LlamaConfig(folder="/nowhere/at/all").facts()


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "./here", "~/models/llama", "models/of/mine"])
def test_a_mistyped_folder_is_not_asked_of_the_hub(folder, monkeypatch):
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(RunFileError, match=f"there is no folder '{folder}'; name one, or OWNER/NAME"):
        CausalLmConfig(folder=folder).facts()


def test_what_the_hub_has_not_is_said_to_be_no_folder_either(monkeypatch):
    def from_pretrained(*_, **__):
        raise OSError("no such repository")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(RunFileError, match="'some/model', which is no folder here; so the hub was asked: no"):
        CausalLmConfig(folder="some/model").facts()


def folder_of(tmp_path, name, **extra):
    getattr(transformers, name)(**{**SHAPE, **extra}).save_pretrained(tmp_path)
    return CausalLmConfig(folder=str(tmp_path))


@pytest.mark.parametrize("name", ["BloomConfig", "Gemma2Config", "T5Config"])
def test_models_that_would_run_wrongly_are_refused(tmp_path, name):
    config = folder_of(tmp_path, name)
    with pytest.raises(RunFileError):
        build_causal(config, config.facts())


def test_a_model_that_keeps_to_its_own_attention_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.GPT2Model, "_supports_attention_backend", False)
    config = folder_of(tmp_path, "GPT2Config")
    with pytest.raises(RunFileError, match="GPT2Model cannot be given other attention"):
        build_causal(config, config.facts())


HYBRIDS = {
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "MiniMaxConfig": {"layer_types": ["linear_attention", "full_attention"]},
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_layers_that_keep_more_than_keys_and_values_are_refused(tmp_path, name):
    config = folder_of(tmp_path, name, num_key_value_heads=2, **HYBRIDS[name])
    with pytest.raises(RunFileError, match="layers that are no plain attention"):
        build_causal(config, config.facts())


def test_a_family_with_such_layers_is_taken_where_a_model_has_none(tmp_path):
    config = folder_of(tmp_path, "Lfm2Config", num_key_value_heads=2, layer_types=["full_attention"] * 2)
    model = build_causal(config, config.facts())
    plan, positions = alone(5)
    assert model(torch.randn(1, 5, 32), positions, plan).isfinite().all()


@pytest.mark.parametrize(
    ("name", "why"), [("DogeConfig", "masks of its own"), ("DiffLlamaConfig", "attends twice")]
)
def test_attention_that_is_more_than_one_look_is_refused(tmp_path, name, why):
    config = folder_of(tmp_path, name, num_key_value_heads=2)
    model = build_causal(config, config.facts())
    with pytest.raises(RunFileError, match=why), torch.no_grad():
        model(torch.randn(1, 5, 32), torch.arange(5)[None], Cached(0), model.new_cache(1, 5))


def test_a_sliding_window_is_refused_only_where_it_matters(tmp_path):
    config = folder_of(tmp_path, "MistralConfig", sliding_window=8, num_key_value_heads=2)
    model = build_causal(config, config.facts())
    plan, positions = alone(8)
    assert model(torch.randn(1, 8, 32), positions, plan).isfinite().all()
    plan, positions = alone(9)
    with pytest.raises(RunFileError, match="looks back 8 positions only, but a sequence here has 9"):
        model(torch.randn(1, 9, 32), positions, plan)


WINDOWED: dict[str, dict[str, Any]] = {
    "Mistral": {},
    "Phimoe": {"num_local_experts": 2, "lm_head_bias": False},
    "Qwen2Moe": {
        "use_sliding_window": True,
        "max_window_layers": 1,
        "num_experts": 4,
        "moe_intermediate_size": 16,
    },
}
"""Families that say their window to the layers, and those that say it to transformers' masks alone."""


@pytest.mark.parametrize("family", WINDOWED)
def test_a_cache_is_longer_than_a_sliding_window(tmp_path, family):
    """Rows of a cache see as far back as transformers' own model does, wherever their slots lie."""
    torch.manual_seed(4)
    sizes = {**SHAPE, "sliding_window": 8, "num_key_value_heads": 2, **WINDOWED[family]}
    config = getattr(transformers, f"{family}Config")(**sizes)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, _ = loaded(str(tmp_path))
    ids, pads, given = torch.randint(61, (2, 22)), 5, 13
    ids[1, :pads] = 0
    with torch.no_grad():
        alone_ = [
            theirs.model(row[None], use_cache=False).last_hidden_state[0] for row in (ids[0], ids[1, pads:])
        ]
        visible = torch.ones(2, 22, dtype=torch.bool)
        visible[1, :pads] = False
        positions = (torch.arange(22) - torch.tensor([[0], [pads]])).clamp(min=0)
        cache, embeds = ours.new_cache(2, 22), ours.embed(ids)
        steps = [ours(embeds[:, :given], positions[:, :given], Cached(0, visible[:, :given]), cache)]
        for slot in range(given, 22):
            plan = Cached(slot, visible[:, : slot + 1])
            steps.append(ours(embeds[:, slot : slot + 1], positions[:, slot : slot + 1], plan, cache))
        hidden = torch.cat(steps, 1)
        bare = ours(embeds[:1, :given], positions[:1, :given], Cached(0), ours.new_cache(1, given))
    torch.testing.assert_close(hidden[0], alone_[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden[1, pads:], alone_[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bare[0], alone_[0][:given], atol=1e-5, rtol=1e-4)


def phi3_of_two_angles(tmp_path):
    """Return transformers' model whose samples of more than 16 positions are turned by other angles, and ours."""
    torch.manual_seed(5)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 5.0, 9.0]}
    rope |= {"rope_theta": 10000.0, "factor": 4.0}
    short = {"original_max_position_embeddings": 16}
    sizes = {**SHAPE, **short, "pad_token_id": 0, "rope_parameters": rope | short}
    theirs = transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes)).eval()
    theirs.save_pretrained(tmp_path)
    return theirs, loaded(str(tmp_path))[0]


def test_a_short_sample_keeps_its_angles_beside_a_long_one(tmp_path):
    """Under `longrope` each sample is as transformers' own model makes it alone: of a pack, and of a cache."""
    theirs, ours = phi3_of_two_angles(tmp_path)
    lengths, given = [16, 20, 17, 5], 18
    ids = torch.randint(1, 61, (sum(lengths),))
    samples = ids.split(lengths)
    with torch.no_grad():
        expected = [theirs.model(each[None], use_cache=False).last_hidden_state[0] for each in samples]
        plan, positions = packed_rows([lengths], 60)
        packed = ours(ours.embed(torch.nn.functional.pad(ids, (0, 2)))[None], positions, plan)[0]
        rows = torch.stack([torch.nn.functional.pad(samples[at], (20 - lengths[at], 0)) for at in (1, 3)])
        slots, pads = torch.arange(20), torch.tensor([[0], [15]])
        positions, visible, cache = (slots - pads).clamp(min=0), slots >= pads, ours.new_cache(2, 20)
        steps = [
            ours(
                ours.embed(rows[:, first:stop]),
                positions[:, first:stop],
                Cached(first, visible[:, :stop]),
                cache,
            )
            for first, stop in [(0, given), (given, 19), (19, 20)]
        ]
    for made, wanted in zip(packed[:58].split(lengths), expected, strict=True):
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-4)
    hidden = torch.cat(steps, 1)
    torch.testing.assert_close(hidden[0], expected[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden[1, 15:], expected[3], atol=1e-5, rtol=1e-4)


def test_an_answer_that_outgrows_its_angles_is_run_anew(tmp_path):
    """Under `longrope` every step is as transformers' own model makes it of the row so far, without a cache."""
    theirs, ours = phi3_of_two_angles(tmp_path)
    pads, given, length = [0, 4], 10, 24
    ids = torch.randint(1, 61, (2, length))
    slots = torch.arange(length)
    positions = (slots - torch.tensor(pads)[:, None]).clamp(min=0)
    visible, cache = slots >= torch.tensor(pads)[:, None], ours.new_cache(2, length)
    bounds = [0, given, *range(given + 1, length - 2), length]
    with torch.no_grad():
        for first, stop in itertools.pairwise(bounds):
            plan = Cached(first, visible[:, :stop])
            hidden = ours(ours.embed(ids[:, first:stop]), positions[:, first:stop], plan, cache)
            assert hidden.shape == (2, stop - first, 32)
            for row, pad in enumerate(pads):
                wanted = theirs.model(ids[row : row + 1, pad:stop], use_cache=False).last_hidden_state
                torch.testing.assert_close(hidden[row, -1], wanted[0, -1], atol=1e-5, rtol=1e-4)
        chosen = cache.select(torch.tensor([1, 1]))
        plan, free = Cached(15, visible[:, :16]), torch.ones(2, 1, 16, dtype=torch.bool)
        ours(ours.embed(ids[:, 15:16]), positions[1:, 15:16], plan, chosen)  # short again
        with pytest.raises(RunFileError, match="decoded here in another order"):
            ours(ours.embed(ids[:, 15:16]), torch.tensor([[40]]), Cached(15, free), chosen)
    assert not ours.static_steps


def test_a_window_of_slots_that_see_others_is_refused(tmp_path):
    config = folder_of(tmp_path, "MistralConfig", sliding_window=8, num_key_value_heads=2)
    model = build_causal(config, config.facts())
    positions = torch.arange(9)[None]
    with pytest.raises(RunFileError, match="8 positions only, but 9 slots are decoded here in another order"):
        model(torch.randn(1, 9, 32), positions, Cached(0, block=2), model.new_cache(1, 9))


def test_a_hostile_config_runs_no_code(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    hostile = {
        **{key: value for key, value in SHAPE.items() if value is not None},
        "model_type": "llama",
        "tie_word_embeddings": False,
        "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"},
        "trust_remote_code": True,
        "attn_implementation": "a/b",
        "_attn_implementation_internal": "a/b",
    }
    (tmp_path / "config.json").write_text(json.dumps(hostile))
    config = CausalLmConfig(folder=str(tmp_path))
    model = build_causal(config, config.facts())
    assert model.model.config._attn_implementation == "janus_plugins"
    assert not (tmp_path / "ran").exists()


def test_facts_of_a_full_config_need_no_torch(tmp_path):
    folder_of(tmp_path, "Qwen2Config")
    code = (
        "import sys; from janus_plugins.language_models.spec import CausalLmConfig as C, LlamaConfig as L\n"
        f"C(folder={str(tmp_path)!r}).facts(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
