"""SigLIP 2: shapes and patches as published, weights of both layouts, pictures of one batch apart."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from janus_plugins.encoders.siglip2.processor import Siglip2Processor, shape
from janus_plugins.encoders.siglip2.spec import SIGLIP2, SIZES, Siglip2Config
from janus_plugins.sequence.assemble import collate_items
from tests.components.keeps import made

TINY = Siglip2Config.tiny()


def picture(width, height, seed=0):
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(384, 384), (640, 480), (100, 1000), (31, 17), (3000, 40), (1, 90)])
def test_shapes_are_those_of_transformers(size):
    height, width = size
    expected = get_image_size_for_max_num_patches(height, width, 16, 256)
    assert tuple(16 * each for each in shape(height, width, 16, 256)) == expected


@pytest.mark.parametrize("size", [(10000, 1), (1, 10000), (70, 1)])
def test_no_shape_has_more_patches_than_allowed(size):
    rows, columns = shape(*size, 16, 12)
    assert 1 <= rows * columns <= 12


def test_patches_are_row_major_and_channels_last():
    processor = Siglip2Processor(Siglip2Config(**TINY))
    image = picture(16, 12)
    arrays = processor(image)
    assert arrays["shape"].tolist() == [3, 4]
    pixels = (np.asarray(image, np.float32) / 255 - 0.5) / 0.5
    assert np.allclose(arrays["patches"][5], pixels[4:8, 4:8].reshape(-1), atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_build(size):
    with torch.device("meta"):
        encoder = made(SIGLIP2, {"size": size})
    width, depth, _, mlp = SIZES[size]
    layer = 4 * (width * width + width) + 2 * width * mlp + width + mlp + 4 * width
    expected = (3 * 16 * 16 + 1) * width + 256 * width + depth * layer + 2 * width
    assert sum(each.numel() for each in encoder.parameters()) == expected


def published_naflex(encoder, seed=4):
    torch.manual_seed(seed)
    return Siglip2VisionModel(
        type(encoder.trunk.config)(**{**encoder.trunk.config.to_dict(), "vision_use_head": True})
    ).eval()


def test_naflex_weights_load_and_answer_as_published(tmp_path):
    encoder = made(SIGLIP2, TINY)
    published = published_naflex(encoder)
    tensors = {f"vision_model.{name}": each for name, each in published.state_dict().items()}
    assert any(name.startswith("vision_model.head.") for name in tensors)
    save_file({**tensors, "text_model.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    encoder.load_weights(str(tmp_path))
    processor = Siglip2Processor(Siglip2Config(**TINY))
    items = collate_items([processor(picture(16, 12)), processor(picture(16, 16))])
    mask = torch.arange(12) < items["patches_lengths"][:, None]
    theirs = published(items["patches"], mask, items["shape"]).last_hidden_state
    features = encoder(items)
    assert torch.allclose(features[mask], theirs[mask], atol=1e-6)
    assert not features[~mask].any()


def test_weights_of_one_size_load(tmp_path):
    torch.manual_seed(4)
    published = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4
        )
    ).eval()  # fmt: skip
    tensors = {
        f"vision_model.{name.removeprefix('vision_model.')}": each
        for name, each in published.state_dict().items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    encoder = made(SIGLIP2, {**TINY, "max_patches": 9})
    encoder.load_weights(str(tmp_path))
    processor = Siglip2Processor(Siglip2Config(**{**TINY, "max_patches": 9}))
    image = picture(12, 12)
    pixels = torch.from_numpy((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    theirs = published(pixels).last_hidden_state
    assert torch.allclose(encoder(collate_items([processor(image)])), theirs, atol=1e-5)
