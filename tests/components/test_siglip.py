"""SigLIP: the reference trunk, small ones, and published weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from janus_plugins.core.errors import CheckpointError
from janus_plugins.encoders.siglip.model import build
from janus_plugins.encoders.siglip.processor import SiglipProcessor
from janus_plugins.encoders.siglip.spec import SiglipConfig

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def encoder(seed=0, **options):
    torch.manual_seed(seed)
    config = SiglipConfig(**{**TINY, **options})
    return build(config, config.facts()).eval()


def on_meta(**options):
    config = SiglipConfig(**options)
    with torch.device("meta"):
        return config, build(config, config.facts())


def test_the_reference_trunk():
    config, made = on_meta()
    assert sum(each.numel() for each in made.parameters()) == 303_688_704
    block = made.trunk.blocks[0]
    assert (block.norm1.eps, made.trunk.norm.eps) == (1e-6, 1e-6)
    assert getattr(block.mlp.act, "approximate", "none") == "none"
    assert made({"pixels": torch.zeros(1, 3, 384, 384, device="meta")}).shape == (1, 576, 1024)
    assert (config.facts().tokens, config.facts().width) == (576, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("vit_*siglip*"))
def test_every_name_of_timm_builds_and_answers_as_its_facts(name):
    config, made = on_meta(name=name)
    facts = config.facts()
    pixels = torch.zeros(1, 3, config.image_size, config.image_size, device="meta")
    assert made({"pixels": pixels}).shape == (1, facts.tokens, facts.width)


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_siglip_224", "vit_so400m_patch14_siglip_gap_378", "vit_giantopt_patch16_siglip_256"],
)
def test_names_build(name):
    on_meta(name=name)


@pytest.mark.parametrize(
    "name", ["resnet50", "vit_tiny_patch16_siglip_224", "vit_large_patch16_siglip", "../x"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="is not a SigLIP of timm"):
        SiglipConfig(name=name)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="embed_dim 30 is not a multiple of num_heads 4"):
        SiglipConfig(embed_dim=30, num_heads=4)
    with pytest.raises(ValueError, match="img_size 8 is smaller than patch_size 16"):
        SiglipConfig(img_size=8)


@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"img_size": 18}, {"mlp_ratio": 2.0}], ids=str)
def test_small_ones_answer_as_their_facts(options):
    made = encoder(**options)
    config = made.config
    processor = SiglipProcessor(config)
    items = {name: torch.from_numpy(array)[None] for name, array in processor.dummy().items()}
    features = made(items)
    assert features.shape == (1, config.facts().tokens, 32)
    assert features.isfinite().all()
    assert processor.num_tokens(processor.dummy()) == config.facts().tokens


def test_features_are_those_of_all_blocks_and_the_final_norm():
    made = encoder()
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.allclose(made({"pixels": pixels}), made.trunk.forward_features(pixels))


def test_patches_are_row_major():
    made = encoder()
    made.trunk.blocks = torch.nn.Sequential()
    with torch.no_grad():
        made.trunk.pos_embed.zero_()
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[:, :, 0:4, 12:16] = torch.randn(3, 4, 4)
    features = made({"pixels": pixels})[0]
    differs = [index for index in range(16) if not torch.allclose(features[index], features[15])]
    assert differs == [3]


def test_published_weights_load_and_the_unused_pooling_is_dropped(tmp_path):
    published = timm.create_model("vit_large_patch16_siglip_384", num_classes=0, **TINY)
    tensors = published.state_dict()
    assert any(name.startswith("attn_pool.") for name in tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    made = encoder(seed=5)
    made.load_weights(str(tmp_path))
    pixels = torch.randn(1, 3, 16, 16)
    published.eval()
    assert torch.allclose(made({"pixels": pixels}), published.forward_features(pixels), atol=1e-6)


def test_a_larger_picture_resamples_the_positions(tmp_path):
    save_file(encoder(seed=1).trunk.state_dict(), tmp_path / "model.safetensors")
    made = encoder(img_size=32)
    before = made.trunk.pos_embed.clone()
    made.load_weights(str(tmp_path))
    assert made.trunk.pos_embed.shape == (1, 64, 32)
    assert not torch.equal(made.trunk.pos_embed, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.mlp.fc1.bias"), r"1 missing \(blocks.1.mlp.fc1.bias\)"),
        (lambda t: t.update(stray=torch.zeros(1)), r"1 unexpected \(stray\)"),
        (lambda t: t.update({"norm.weight": torch.zeros(3)}), r"norm.weight \(3,\) instead of \(32,\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_every_key_is_accounted_for(tmp_path, change, message):
    made = encoder()
    tensors = dict(made.trunk.state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        made.load_weights(str(tmp_path))
