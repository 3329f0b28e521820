"""InternViT: the published sizes, weights in three layouts, and tiles."""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.tiles import choose_grid, split
from janus_plugins.encoders.internvit.processor import InternVitProcessor
from janus_plugins.encoders.internvit.spec import INTERNVIT, InternVitConfig
from janus_plugins.encoders.towers.eva_spec import EvaClipConfig
from janus_plugins.sequence.assemble import collate_items
from tests.components.keeps import made

TINY = InternVitConfig.tiny()
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("size", "count"), [("300m", 304_012_288), ("6b", 5_536_496_000)])
def test_published_sizes(size, count):
    with torch.device("meta"):
        encoder = made(INTERNVIT, {"size": size})
        assert encoder({"pixels": torch.zeros(1, 3, 448, 448)}).shape[1] == 1024
    total = sum(each.numel() for each in encoder.parameters())
    assert total == count


def published(seed=3):
    torch.manual_seed(seed)
    trunk = timm.create_model(
        "vit_intern300m_patch14_448", num_classes=0, img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0
    ).eval()  # fmt: skip
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return trunk


def official(trunk):
    """timm's tensors under the names of OpenGVLab's own files, inside a whole InternVL."""
    names = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding"}
    renamed = {"language_model.x": torch.zeros(1), "mlp1.0.weight": torch.zeros(1)}
    for name, tensor in trunk.state_dict().items():
        theirs = names.get(name, name).replace("patch_embed.proj", "embeddings.patch_embedding")
        theirs = theirs.replace("blocks.", "encoder.layers.").replace(".gamma", "")
        renamed[f"vision_model.{theirs}"] = tensor
    return renamed


@pytest.mark.parametrize("layout", ["timm", "official", "transformers"])
def test_weights_of_every_layout_answer_as_published(tmp_path, layout):
    trunk, encoder = published(), made(INTERNVIT, TINY)
    save_file(trunk.state_dict() if layout == "timm" else official(trunk), tmp_path / "model.safetensors")
    if layout == "transformers":
        first = made(INTERNVIT, TINY)
        first.load_weights(str(tmp_path))
        tensors = {f"model.vision_tower.{name}": each for name, each in first.trunk.state_dict().items()}
        save_file(
            {**tensors, "model.multi_modal_projector.x": torch.zeros(1)}, tmp_path / "model.safetensors"
        )
    encoder.load_weights(str(tmp_path))
    assert torch.allclose(encoder({"pixels": PIXELS}), trunk.forward_features(PIXELS)[:, 1:], atol=1e-5)


def test_positions_are_resampled_and_missing_weights_refused(tmp_path):
    tensors = published().state_dict()
    save_file(tensors, tmp_path / "model.safetensors")
    grown = made(INTERNVIT, {**TINY, "image_size": 32})
    grown.load_weights(str(tmp_path))
    positions = grown.trunk.embeddings.position_embeddings
    assert positions.shape == (1, 65, 16)
    assert torch.equal(positions[:, :1], tensors["pos_embed"][:, :1])
    del tensors["blocks.0.ls1.gamma"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(encoder\.layer\.0\.lambda_1\)"):
        made(INTERNVIT, TINY).load_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (1, 1)),
        ((800, 800), (2, 2)),
        ((2000, 2000), (3, 3)),
        ((900, 300), (3, 1)),
        ((300, 900), (1, 3)),
    ],
)
def test_grids_are_those_of_internvl(size, grid):
    assert choose_grid(*size, 448, 12) == grid


def test_tiles_are_row_major_with_the_whole_at_the_end():
    image = Image.new("RGB", (64, 32))
    image.paste((255, 0, 0), (32, 0, 64, 32))
    left, right, whole = split(image, 32, 4, thumbnail=True)
    assert (left.getpixel((5, 5)), right.getpixel((25, 5))) == ((0, 0, 0), (255, 0, 0))
    assert whole.size == (32, 32)
    assert len(split(image, 32, 4, thumbnail=False)) == 2


@pytest.mark.parametrize("config", [InternVitConfig, EvaClipConfig])
def test_how_one_square_is_filled_is_not_said_of_tiles(config):
    said = {"fit": "crop", "background": (0, 0, 0)}
    config(**said)
    config(max_tiles=2, fit="pad", background=(127, 127, 127))  # as a saved run file spells it out
    with pytest.raises(ValueError, match=r"fit and background say how .* max_tiles 2 .*; leave them out"):
        config(max_tiles=2, **said)


def test_each_tile_is_read_by_itself():
    options = {**TINY, "max_tiles": 4}
    encoder, processor = made(INTERNVIT, options), InternVitProcessor(InternVitConfig(**options))
    facts = InternVitConfig(**options).facts()
    assert (facts.tokens, facts.max_tokens) == (None, 16 * 5)
    wide, square = (processor(Image.radial_gradient("L").resize(size)) for size in ((40, 20), (16, 16)))
    assert [processor.num_tokens(each) for each in (wide, square)] == [48, 16]
    together = encoder(collate_items([wide, square]))
    alone = made(INTERNVIT, TINY)({"pixels": torch.from_numpy(wide["pixels"])})
    assert torch.allclose(together[0], alone.flatten(0, 1), atol=1e-6)
    assert not together[1, 16:].any()
