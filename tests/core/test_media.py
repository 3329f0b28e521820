"""Pictures: what is opened, what is refused, and the two fits against the official rule."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_plugins.core import media
from janus_plugins.core.errors import BadSample
from janus_plugins.core.media import ImageProcessor, fit_crop, fit_pad, open_image, to_array


def ramp(width: int, height: int) -> Image.Image:
    """A smooth picture that differs at every place."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, (across + down) / 2], -1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", media.FORMATS)
def test_every_listed_format_opens_from_bytes_and_path(kind, tmp_path):
    data = saved(ramp(20, 12), kind)
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(data)
    for value in (data, path, str(path), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}):
        image = open_image(value)
        assert (image.mode, image.size) == ("RGB", (20, 12))
        assert np.abs(np.asarray(image, int) - np.asarray(ramp(20, 12), int)).mean() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I"])
def test_every_mode_becomes_rgb_as_pil_converts_it(mode):
    source = ramp(9, 7).convert("L" if mode == "LA" else "RGB").convert(mode)
    assert np.array_equal(np.asarray(open_image(source)), np.asarray(source.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_range():
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    image = open_image(saved(Image.fromarray(grey), "PNG"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_of_32_bits_is_read_or_refused_never_clipped():
    share = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, 0)
    wanted = np.rint(share * 255).astype(int)
    for grey in (share, share * 255, np.rint(share * 255).astype(np.int32)):
        image = Image.fromarray(grey)
        assert image.mode in ("F", "I")
        assert np.abs(np.asarray(open_image(image), int)[..., 0] - wanted).max() <= 1
    for grey in (share * 1000, share - 0.5, share * np.nan, (share * 65535).astype(np.int32)):
        with pytest.raises(BadSample, match=r"grey from .* give 8 or 16 bits, or floats in \[0, 1\]"):
            open_image(Image.fromarray(grey))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0))[0] > 200


def test_rotation_is_applied_only_when_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(ramp(30, 10), "JPEG", exif=exif)
    assert open_image(data).size == (30, 10)
    assert open_image(data, rotate=True).size == (10, 30)


def test_arrays_open():
    colour = np.asarray(ramp(6, 5))
    assert np.array_equal(np.asarray(open_image(colour)), colour)
    assert np.array_equal(np.asarray(open_image(colour / 255)), colour)
    assert np.array_equal(np.asarray(open_image(colour[:, :, :1]))[:, :, 2], colour[:, :, 0])
    assert open_image(colour[:, :, 0]).size == (6, 5)


def bomb() -> bytes:
    """A PNG of 9000 x 9000 pixels in a few bytes; Pillow opens it without a warning."""
    data = zlib.compress(b"\0" * (9000 // 8 + 1) * 9000)
    header = struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(text)) + tag + text + struct.pack(">I", zlib.crc32(tag + text))
        for tag, text in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


BAD = {
    "empty": b"",
    "text": b"not a picture",
    "truncated jpeg": saved(ramp(64, 64), "JPEG")[:-400],
    "truncated png": saved(ramp(64, 64), "PNG")[:300],
    "corrupt png": saved(ramp(64, 64), "PNG")[:200] + b"x" * 100 + saved(ramp(64, 64), "PNG")[300:],
    "format off the list": saved(ramp(8, 8), "TIFF"),
    "too many pixels": bomb(),
    "thin": saved(Image.new("L", (1, 20000)), "PNG"),
    "number": 7,
    "nothing": None,
    "no bytes, no path": {"bytes": None, "path": None},
    "floats beyond 1": np.full((4, 4), 3.0),
    "not finite": np.full((4, 4), np.nan),
    "five channels": np.zeros((4, 4, 5), np.uint8),
    "integers": np.zeros((4, 4), np.int64),
    "nul in path": "a\0b.png",
    "16 bits in 32": Image.fromarray(np.full((4, 4), 40000, np.int32)),
    "below zero": Image.fromarray(np.full((4, 4), -0.5, np.float32)),
    "not a number": Image.fromarray(np.full((4, 4), np.nan, np.float32)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_a_bad_sample(case):
    with pytest.raises(BadSample):
        open_image(BAD[case])


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(BAD["truncated jpeg"])
    with pytest.raises(BadSample, match=r"broken\.jpg"):
        open_image(path)
    with pytest.raises(BadSample, match=r"absent\.png: there is no such file"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(BadSample, match=str(tmp_path)):
        open_image(tmp_path)


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(Image.Image, "convert", lambda *_: decoded.append(1))
    with pytest.raises(BadSample, match="9000 x 9000"):
        open_image(bomb())
    assert not decoded


def official_resize(image: Image.Image, size: int) -> Image.Image:
    """The official rule, with torchvision's resize as there. Source: Janus, `image_processing_vlm.py`."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    width, height = image.size
    longest = max(width, height)
    target = [max(int(height / longest * size), 14), max(int(width / longest * size), 14)]
    image = resize(image, target, interpolation=InterpolationMode.BICUBIC, antialias=True)
    square = Image.new("RGB", (size, size), (127, 127, 127))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


@pytest.mark.parametrize("sides", [(640, 480), (333, 500), (50, 50), (17, 400), (1, 60), (500, 333)])
def test_padding_equals_the_official_rule(sides):
    image = ramp(*sides)
    assert np.array_equal(np.asarray(fit_pad(image, 96)), np.asarray(official_resize(image, 96)))


def test_a_square_smaller_than_the_least_side_is_possible():
    assert fit_pad(ramp(5, 20), 8).size == (8, 8)


def test_cropping_keeps_the_middle_of_the_long_side():
    image = ramp(300, 100)
    cropped = np.asarray(fit_crop(image, 50))
    resized = np.asarray(image.resize((150, 50), Image.Resampling.BICUBIC))
    assert np.array_equal(cropped, resized[:, 50:100])


def test_a_random_crop_moves_along_the_long_side_and_is_repeatable():
    image = ramp(300, 100)
    crops = [fit_crop(image, 50, "random", np.random.default_rng(seed)).tobytes() for seed in range(6)]
    assert len(set(crops)) > 3
    assert crops[0] == fit_crop(image, 50, "random", np.random.default_rng(0)).tobytes()


def test_arrays_are_normalised_channel_first():
    array = to_array(Image.new("RGB", (3, 2), (0, 127, 255)))
    assert (array.shape, array.dtype) == ((3, 2, 3), np.float32)
    assert np.allclose(array[:, 0, 0], [-1, -1 / 255, 1], atol=1e-6)
    shifted = to_array(Image.new("RGB", (1, 1), (255, 255, 255)), (0.4, 0.5, 0.6), (0.2, 0.2, 0.1))
    assert np.allclose(shifted[:, 0, 0], [3, 2.5, 4])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_processor(channels, fit):
    processor = pickle.loads(pickle.dumps(ImageProcessor(16, fit=fit, channels=channels, tokens=4)))
    arrays, dummy = processor(ramp(40, 20)), processor.dummy()
    assert arrays["pixels"].shape == dummy["pixels"].shape == (channels, 16, 16)
    assert arrays["pixels"].dtype == dummy["pixels"].dtype == np.float32
    assert np.abs(arrays["pixels"]).max() <= 1
    assert processor.num_tokens(arrays) == processor.num_tokens(dummy) == 4


def test_a_random_crop_of_a_processor_depends_on_the_picture_alone():
    processor = ImageProcessor(16, fit="crop", crop="random")
    pictures = [ramp(160 + index, 16) for index in range(5)]
    again = [processor(picture)["pixels"] for picture in reversed(pictures)][::-1]
    assert all(
        np.array_equal(processor(each)["pixels"], same) for each, same in zip(pictures, again, strict=True)
    )
    centred = ImageProcessor(16, fit="crop")
    assert any(not np.array_equal(centred(each)["pixels"], processor(each)["pixels"]) for each in pictures)


def test_restoring_clips_and_truncates():
    values = np.array([-3.0, -1.0, 0.0, 0.999, 1.0, 5.0], np.float32)
    colour = ImageProcessor(1).restore(np.broadcast_to(values, (3, 1, 6)))
    assert np.asarray(colour)[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]
    assert ImageProcessor(1, channels=1).restore(values[None, None]).mode == "L"
    with pytest.raises(ValueError, match="finite"):
        ImageProcessor(1).restore(np.full((3, 2, 2), np.nan))


def test_a_picture_survives_the_way_there_and_back():
    image = ramp(16, 16)
    processor = ImageProcessor(16, fit="crop")
    back = np.asarray(processor.restore(processor(image)["pixels"]), int)
    assert np.abs(back - np.asarray(image, int)).max() <= 1


def test_a_png_carries_its_metadata(tmp_path):
    processor = ImageProcessor(4)
    path = tmp_path / f"out{processor.suffix}"
    processor.write(ramp(4, 4), str(path), {"prompt": "eine Sieben ✓", "seed": "3"})
    with Image.open(Path(path)) as image:
        assert image.format == "PNG"
        assert image.text == {"prompt": "eine Sieben ✓", "seed": "3"}
        assert np.array_equal(np.asarray(image), np.asarray(ramp(4, 4)))
