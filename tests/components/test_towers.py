"""Picture towers of timm and open_clip: names, facts, and weights in the published layouts."""

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file

from janus_plugins.core.errors import CheckpointError, RunFileError
from janus_plugins.encoders.towers.eva_spec import EVA_CLIP, TOWERS, EvaClipConfig
from janus_plugins.encoders.towers.open_clip_spec import OPEN_CLIP, OpenClipConfig, descriptions
from janus_plugins.encoders.towers.processor import ClipProcessor, TimmProcessor
from janus_plugins.encoders.towers.timm_spec import TIMM, TimmConfig
from tests.components.keeps import made

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def test_published_sizes_are_answered():
    facts = TimmConfig(name="vit_intern300m_patch14_448").facts()
    assert (facts.width, facts.tokens) == (1024, 1024)
    assert TimmConfig(name="swin_tiny_patch4_window7_224").facts().tokens == 49
    facts = TimmConfig(name="resnet18", image_size=128).facts()
    assert (facts.width, facts.tokens) == (512, 16)
    kept = TimmConfig(name="vit_small_patch14_reg4_dinov2", image_size=28, keep_prefix=True).facts()
    assert kept.tokens == 5 + 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_eva_towers_answer_as_their_facts(name):
    config = EvaClipConfig(name=name)
    with torch.device("meta"):
        tower = made(EVA_CLIP, {"name": name})
        features = tower({"pixels": torch.zeros(1, 3, config.side, config.side)})
    facts = config.facts()
    assert features.shape == (1, facts.tokens, facts.width)


@pytest.mark.slow
@pytest.mark.parametrize("name", descriptions())
def test_every_open_clip_tower_answers_as_its_facts(name):
    config = OpenClipConfig(name=name)
    with torch.device("meta"):
        tower = made(OPEN_CLIP, {"name": name})
        features = tower({"pixels": torch.zeros(1, 3, config.side, config.side)})
    facts = config.facts()
    assert features.shape == (1, facts.tokens, facts.width)


def test_stated_sizes_import_nothing_and_are_checked():
    stated = TimmConfig(name="resnet18", image_size=64, width=512, tokens=5)
    assert stated.facts().tokens == 5
    with pytest.raises(RunFileError, match="makes 4 tokens of width 512, but the options state 5"):
        made(TIMM, stated.model_dump())
    with pytest.raises(ValueError, match="give image_size, width and tokens together"):
        TimmConfig(name="resnet18", tokens=4)


def test_names_and_sizes_that_do_not_exist_are_refused():
    with pytest.raises(RunFileError, match=r"no model 'resnet81'. Did you mean"):
        TimmConfig(name="resnet81").facts()
    with pytest.raises(RunFileError, match="cannot build vit_tiny_patch16_224"):
        TimmConfig(name="vit_tiny_patch16_224", args={"dims": [3]}).facts()
    with pytest.raises(RunFileError, match="Only token or avg pooling"):
        TimmConfig(name="coat_tiny").facts()
    for name in ("deit_tiny_distilled_patch16_224", "efficientvim_m1"):
        with pytest.raises(RunFileError, match=f"{name} gives no map or line of features"):
            TimmConfig(name=name).facts()
    with pytest.raises(RunFileError, match="cannot build deepseek_vit_412m_enc"):
        TimmConfig(name="deepseek_vit_412m_enc").facts()
    with pytest.raises(ValueError, match=r"no model 'ViT-B-61'. Did you mean 'ViT-B-16'"):
        OpenClipConfig(name="ViT-B-61")
    with pytest.raises(ValueError, match="multiple of 4"):
        EvaClipConfig(embed_dim=20, num_heads=2)


def test_means_are_those_of_the_training():
    assert TimmProcessor(TimmConfig(**TIMM.config.tiny())).mean == (0.5, 0.5, 0.5)
    assert TimmProcessor(TimmConfig(name="resnet18", image_size=64)).mean == (0.485, 0.456, 0.406)
    assert ClipProcessor(EvaClipConfig()).mean[0] == pytest.approx(0.48145466)
    assert ClipProcessor(OpenClipConfig(name="ViT-B-16-SigLIP")).std == (0.5, 0.5, 0.5)
    assert ClipProcessor(OpenClipConfig(name="ViT-B-16", mean=(0, 0, 0))).mean == (0, 0, 0)
    apple = ClipProcessor(OpenClipConfig(name="MobileCLIP-S1"))
    assert (apple.mean, apple.std) == ((0, 0, 0), (1, 1, 1))


def test_means_of_open_clip_are_those_of_its_weights():
    """One model has weights of two kinds; the rarer ones are refused, see below."""
    others = set()
    for name in descriptions():
        ours = OpenClipConfig(name=name).published
        for tag in open_clip.list_pretrained_tags_by_model(name):
            known = open_clip.get_pretrained_cfg(name, tag)
            if known.get("mean") and (tuple(known["mean"]), tuple(known["std"])) != ours:
                others.add((name, tag))
    assert others == {("ViT-L-14", "laion2b_s32b_b82k")}


@pytest.mark.parametrize(
    "source", ["laion2b_s32b_b82k", "laion2b-s32b-b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"]
)
def test_weights_of_other_colours_are_refused_unless_the_options_say_them(source, monkeypatch):
    opened = []
    monkeypatch.setattr("janus_plugins.encoders.towers.open_clip_tower.read_weights", opened.append)
    options = {**OPEN_CLIP.config.tiny(), "name": "ViT-L-14"}
    with pytest.raises(CheckpointError, match=r"trained with mean \(0.5, .* come with \(0.4814"):
        made(OPEN_CLIP, options).load_weights(source)
    assert not opened
    halves = (0.5, 0.5, 0.5)
    with pytest.raises((CheckpointError, AttributeError, TypeError)):  # there are none to load
        made(OPEN_CLIP, {**options, "mean": halves, "std": halves}).load_weights(source)
    assert opened == ["laion/CLIP-ViT-L-14-laion2B-s32B-b82K"]


def test_timm_weights_of_other_colours_are_refused(monkeypatch):
    opened = []
    monkeypatch.setattr("janus_plugins.encoders.towers.timm_trunk.read_weights", opened.append)
    tower = made(TIMM, TIMM.config.tiny() | {"name": "vit_base_patch16_224"})
    for source in ("dino", "timm/vit_base_patch16_224.dino"):
        with pytest.raises(CheckpointError, match=r"with mean \(0.485, .* come with \(0.5, 0.5, 0.5\)"):
            tower.load_weights(source)
    assert not opened
    assert TimmProcessor(TimmConfig(name="vit_base_patch16_224.dino")).mean == (0.485, 0.456, 0.406)


def test_timm_weights_load_without_their_classifier(tmp_path):
    options = TIMM.config.tiny()
    torch.manual_seed(3)
    published = timm.create_model(options["name"], num_classes=7, img_size=16, **options["args"]).eval()
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    tower = made(TIMM, options)
    tower.load_weights(str(tmp_path))
    expected = published.forward_features(PIXELS)[:, 1:]
    assert torch.allclose(tower({"pixels": PIXELS}), expected, atol=1e-6)
    grown = made(TIMM, {**options, "image_size": 32})
    grown.load_weights(str(tmp_path))
    assert torch.equal(grown.trunk.blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight)


def test_missing_timm_weights_are_refused(tmp_path):
    tower = made(TIMM, TIMM.config.tiny())
    tensors = {name: each.clone() for name, each in tower.trunk.state_dict().items()}
    del tensors["blocks.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc1\.bias"):
        tower.load_weights(str(tmp_path))


def test_eva_weights_load_from_an_open_clip_file(tmp_path):
    options = EVA_CLIP.config.tiny()
    torch.manual_seed(3)
    trunk = timm.create_model(
        "eva02_base_patch16_clip_224", num_classes=8, global_pool="token", img_size=16,
        embed_dim=16, depth=2, num_heads=2, patch_size=4,
    ).eval()  # fmt: skip
    tensors = {f"visual.trunk.{name}": each for name, each in trunk.state_dict().items()}
    save_file(
        {**tensors, "text.positional_embedding": torch.zeros(3, 4)}, tmp_path / "open_clip_model.safetensors"
    )
    tower = made(EVA_CLIP, options)
    tower.load_weights(str(tmp_path))
    assert torch.allclose(tower({"pixels": PIXELS}), trunk.forward_features(PIXELS)[:, 1:], atol=1e-6)


def clip_file(config, tmp_path, seed=3):
    torch.manual_seed(seed)
    described = config.description
    visual = _build_vision_tower(described["embed_dim"], dict(described["vision_cfg"]))
    tensors = {f"visual.{name}": each for name, each in visual.state_dict().items()}
    save_file({**tensors, "logit_scale": torch.ones(())}, tmp_path / "open_clip_model.safetensors")
    return visual.eval()


def test_open_clip_weights_load_and_positions_are_resampled(tmp_path):
    options = OPEN_CLIP.config.tiny()
    visual = clip_file(OpenClipConfig(**options), tmp_path)
    tower = made(OPEN_CLIP, options)
    tower.load_weights(str(tmp_path))
    expected = visual.forward_intermediates(
        PIXELS, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
    )["image_intermediates"][0]
    assert torch.allclose(tower({"pixels": PIXELS}), expected, atol=1e-6)
    grown = made(OPEN_CLIP, {**options, "image_size": 32})
    grown.load_weights(str(tmp_path))
    assert torch.equal(grown.visual.conv1.weight, visual.conv1.weight)


def test_an_open_clip_resnet_gives_its_last_grid(tmp_path):
    options = {"name": "RN50", "image_size": 64, "width": 8, "head_width": 16}
    config = OpenClipConfig(**options)
    assert (config.facts().width, config.facts().tokens) == (256, 4)
    visual = clip_file(config, tmp_path)
    tower = made(OPEN_CLIP, options)
    tower.load_weights(str(tmp_path))
    pixels = torch.randn(1, 3, 64, 64)
    grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
    assert torch.allclose(tower({"pixels": pixels}), grid.flatten(2).transpose(1, 2), atol=1e-5)


def test_an_open_clip_tower_of_timm_loads_its_trunk(tmp_path):
    options = {
        "name": "ViT-B-16-SigLIP",
        "width": 16,
        "layers": 1,
        "head_width": 8,
        "image_size": 16,
        "patch_size": 8,
    }
    trunk = timm.create_model(
        "vit_base_patch16_siglip_224",
        num_classes=0,
        img_size=16,
        embed_dim=16,
        depth=1,
        num_heads=2,
        patch_size=8,
    ).eval()
    tensors = {f"visual.trunk.{name}": each for name, each in trunk.state_dict().items()}
    save_file({**tensors, "text.x": torch.zeros(2)}, tmp_path / "open_clip_model.safetensors")
    tower = made(OPEN_CLIP, options)
    tower.load_weights(str(tmp_path))
    assert torch.allclose(tower({"pixels": PIXELS}), trunk.forward_features(PIXELS), atol=1e-6)


def test_weights_of_the_other_activation_are_refused():
    tower = made(OPEN_CLIP, OPEN_CLIP.config.tiny())
    for source in ("openai", "timm/vit_base_patch16_clip_224.openai"):
        with pytest.raises(CheckpointError, match=f"'{source}' go with ViT-B-16-quickgelu, not ViT-B-16"):
            tower.load_weights(source)
    assert open_clip.get_pretrained_cfg("ViT-B-16", "openai")
