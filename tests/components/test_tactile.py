"""Touch: differences to the untouched gel, readings over time, files read safely, weights."""

import io
import struct

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from janus_plugins.core.errors import BadSample, RunFileError
from janus_plugins.encoders.tactile.image_processor import TactileProcessor
from janus_plugins.encoders.tactile.image_spec import TACTILE, TactileConfig
from janus_plugins.encoders.tactile.series_processor import TactileSeriesProcessor
from janus_plugins.encoders.tactile.series_spec import TACTILE_SERIES, TactileSeriesConfig
from tests.components.keeps import made

TINY = TactileConfig.tiny()
GEL = np.full((20, 20, 3), 100, np.uint8)
TOUCH = GEL.copy()
TOUCH[:10] = 151


def processor(**options):
    return TactileProcessor(TactileConfig(**TINY, **options))


def test_only_what_was_touched_remains():
    pixels = processor()({"image": TOUCH, "background": GEL})["pixels"]
    assert pixels.shape == (3, 16, 16)
    assert np.allclose(pixels[:, :6], 2 * 51 / 255)
    assert not pixels[:, 10:].any()
    assert not processor()((GEL, GEL))["pixels"].any()


def test_two_pictures_become_six_channels():
    pixels = processor(background="stack")((TOUCH, GEL))["pixels"]
    assert pixels.shape == (6, 16, 16)
    assert np.allclose(pixels[3:], 2 * 100 / 255 - 1)
    assert np.allclose(processor(background="none")(GEL)["pixels"], 2 * 100 / 255 - 1)


def test_one_gel_serves_all_items(tmp_path):
    Image.fromarray(GEL).save(tmp_path / "gel.png")
    with_file = processor(background_file=str(tmp_path / "gel.png"))
    assert np.array_equal(with_file(TOUCH)["pixels"], processor()((TOUCH, GEL))["pixels"])
    with pytest.raises(BadSample, match="without the picture of the untouched gel"):
        processor()(TOUCH)
    with pytest.raises(BadSample, match="a touch of 3 pictures"):
        processor()([GEL, GEL, GEL])
    with pytest.raises(RunFileError, match=r"background_file: .*no such file"):
        processor(background_file=str(tmp_path / "none.png"))


@pytest.mark.parametrize("background", ["subtract", "stack"])
def test_weights_in_timms_layout_load(tmp_path, background):
    options = {**TINY, "background": background, "registers": 2}
    channels = TactileConfig(**options).channels
    torch.manual_seed(3)
    published = timm.models.VisionTransformer(
        img_size=16,
        patch_size=4,
        in_chans=channels,
        embed_dim=16,
        depth=2,
        num_heads=2,
        reg_tokens=2,
        num_classes=5,
    ).eval()
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    encoder = made(TACTILE, options)
    encoder.load_weights(str(tmp_path))
    pixels = torch.randn(2, channels, 16, 16)
    assert torch.allclose(encoder({"pixels": pixels}), published.forward_features(pixels)[:, 3:], atol=1e-6)


def series(**options):
    return TactileSeriesProcessor(TactileSeriesConfig(**TactileSeriesConfig.tiny(), **options))


def test_readings_lose_their_rest(tmp_path):
    readings = np.arange(30.0).reshape(10, 3)
    expected = (readings - readings[:2].mean(0)) / 4
    one = series(rest=2, scale=4.0)
    assert np.allclose(one(readings)["readings"], expected)
    np.save(tmp_path / "a.npy", readings)
    (tmp_path / "a.csv").write_text("fx,fy,fz\n" + "\n".join(",".join(map(str, row)) for row in readings))
    (tmp_path / "b.txt").write_text("\n".join(" ".join(map(str, row)) for row in readings))
    for name in ("a.npy", "a.csv", "b.txt"):
        assert np.allclose(one(tmp_path / name)["readings"], expected)
    assert np.array_equal(series(rest=0)(readings)["readings"], readings)
    assert one.num_tokens(one(readings)) == 3


@pytest.mark.parametrize("end", ["\r\r\n", "\n\n", "\n# pause\n"])
def test_lines_without_numbers_in_a_table_count_for_nothing(end):
    readings = np.random.default_rng(2).normal(size=(60, 3))
    for title in ("", f"fx,fy,fz{end}", f"{end}e,E,f{end}"):
        table = (title + end.join(",".join(map(str, row)) for row in readings)).encode()
        assert np.allclose(series(rest=0)(table)["readings"], readings, atol=1e-6)
    longer = (table.decode() + end + table.decode()).replace("e,E,f", "").encode()
    with pytest.raises(BadSample, match="65 times; 1 to 64 are read"):
        series()(longer)


def test_a_first_reading_that_is_missing_is_no_title():
    for first in (b"nan,nan,nan", b"inf,0,0"):
        with pytest.raises(BadSample, match="no finite numbers"):
            series()(first + b"\n1,2,3\n")


def test_longer_series_are_refused_or_cut():
    with pytest.raises(BadSample, match="65 times; 1 to 64 are read"):
        series()(np.zeros((65, 3)))
    assert len(series(too_long="cut")(np.zeros((65, 3)))["readings"]) == 64


def npy(array, shape=None):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    data = file.getvalue()
    if shape:
        data = data.replace(str(array.shape).encode() + b", }" + b" " * 12, str(shape).encode() + b", }", 1)
        size = len(data) - 10 - array.nbytes
        data = data[:8] + struct.pack("<H", size) + data[10:]
    return data


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 5)), r"\(4, 5\); numbers \[times, 3\]"),
        (np.full((4, 3), np.inf), "no finite numbers"),
        (np.zeros((0, 3)), "0 times"),
        ([[1, 2], [3]], "inhomogeneous"),
        (npy(np.array([object()])), "not numbers"),
        (npy(np.zeros((4, 3)))[:-8], "ends before"),
        (npy(np.zeros((4, 3)), (10**9, 3)), "claims 3,000,000,000 values"),
        (b"\x93NUMPY\x01\x00", "no .npy file"),
        (b"one two three\nfour", "table of numbers"),
        (b"\xff\xfe\x00", "table of numbers"),
        (b"fx,fy,fz\n", "it is empty"),
        ("/nowhere/x.npy", "no such file"),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample(value, message):
    with pytest.raises(BadSample, match=message):
        series()(value)


def test_series_weights_come_back(tmp_path):
    first = made(TACTILE_SERIES, TactileSeriesConfig.tiny(), 1)
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    other = made(TACTILE_SERIES, TactileSeriesConfig.tiny(), 2)
    other.load_weights(str(tmp_path))
    items = {"readings": torch.randn(2, 9, 3)}
    assert torch.equal(first(items), other(items))
