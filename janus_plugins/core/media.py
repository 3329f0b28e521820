"""Pictures: safe opening, the two fits of Janus, arrays and back. For processors of every component.

Foreign files are opened by a short list of decoders, and their size is looked at before a pixel is
decoded; whatever goes wrong is a `BadSample` that names the file. PIL and numpy are imported inside.
"""

from __future__ import annotations

import io
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from janus_plugins.core.errors import BadSample

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 40_000_000
"""Largest picture that is decoded. Pillow's own limit lets 89 million through without a word."""
MAX_ASPECT = 100
"""Largest ratio of the sides; beyond it nothing recognisable is left after resizing."""


def open_image(value: object, *, rotate: bool = False) -> Image.Image:
    """Return a PIL image in RGB of a path, bytes, a PIL image, an array, or {"bytes", "path"} of datasets.

    The first frame of an animation counts. Alpha is dropped and palettes are resolved as PIL's
    `convert("RGB")` does; 16-bit grey keeps its range, where PIL alone would clip it at 255. Grey of 32
    bits is read up to 255, or floats up to 1; more than that is refused.

    Args:
        value: what to open. Arrays are [H, W] or [H, W, 1 | 3 | 4], uint8 or floats in [0, 1].
        rotate: apply the EXIF orientation (the official Janus processor does not).

    Raises:
        BadSample: it cannot be opened, is damaged, of another format, too large or too narrow.
    """
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        value = value.get("bytes") or value.get("path")
    name = _name(value)
    try:
        return _open(value, name, rotate)
    except BadSample:
        raise
    except FileNotFoundError:
        raise BadSample(f"{name}: there is no such file") from None
    except Exception as error:  # decoders of foreign bytes raise nearly anything
        raise BadSample(f"{name}: cannot be read as a picture ({type(error).__name__}: {error})") from error


def _name(value: object) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    return str(getattr(value, "filename", "") or f"picture given as {type(value).__name__}")


def _open(value: object, name: str, rotate: bool) -> Image.Image:
    from PIL import Image

    if isinstance(value, Image.Image):
        return _to_rgb(value, name, rotate)
    if hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
        return _to_rgb(_from_array(value, name), name, rotate)
    if isinstance(value, (bytes, bytearray, memoryview)):
        file: Any = io.BytesIO(value)
    elif isinstance(value, (str, Path)):
        file = Path(value).expanduser()
    else:
        raise BadSample(f"{name}: a picture must be a path, bytes, a PIL image or an array")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            return _to_rgb(image, name, rotate)


def _from_array(value: Any, name: str) -> Image.Image:
    import numpy as np
    from PIL import Image

    array = np.asarray(value)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise BadSample(f"{name}: an array picture must be [H, W] or [H, W, 1, 3 or 4], not {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise BadSample(f"{name}: a picture of floats must lie in [0, 1]")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadSample(f"{name}: an array picture must be uint8 or floats in [0, 1], not {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image, name: str, rotate: bool) -> Image.Image:
    """Check the size, which needs no decoding, then decode."""
    from PIL import Image, ImageOps

    width, height = image.size
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise BadSample(f"{name}: {width} x {height} pixels; 1 to {MAX_PIXELS:,} are read")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadSample(f"{name}: {width} x {height} pixels; sides may differ {MAX_ASPECT}-fold at most")
    image.load()
    if rotate:
        image = ImageOps.exif_transpose(image)
    if image.mode[:4] == "I;16":
        import numpy as np

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        image = _within(image, name)
    return image.convert("RGB")


def _within(image: Image.Image, name: str) -> Image.Image:
    """Return grey of 32 bits in a range that PIL converts; alone it clips at 0 and 255 without a word."""
    import numpy as np

    grey = np.asarray(image)
    if image.mode == "F" and grey.min() >= 0 and grey.max() <= 1:
        return _from_array(grey, name)
    if not (grey.min() >= 0 and grey.max() <= 255):
        raise BadSample(
            f"{name}: grey from {grey.min():g} to {grey.max():g}; give 8 or 16 bits, or floats in [0, 1]"
        )
    return image


def fit_pad(
    image: Image.Image, size: int, background: tuple[int, ...] = (127, 127, 127), min_size: int = 14
) -> Image.Image:
    """Return a square: the long side at `size`, the rest padded. Source: Janus, `VLMImageProcessor.resize`.

    Args:
        image: RGB.
        size: side of the result in pixels.
        background: colour of the padding.
        min_size: least length of the short side.
    """
    from PIL import Image

    longest = max(image.size)
    width, height = (min(size, max(int(side / longest * size), min_size)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    if (width, height) == (size, size):
        return resized
    square = Image.new(image.mode, (size, size), background)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def fit_crop(
    image: Image.Image,
    size: int,
    crop: Literal["center", "random"] = "center",
    rng: np.random.Generator | None = None,
) -> Image.Image:
    """Return a square: the short side at `size`, the long side cropped. Source: Janus, section 3.2.

    Args:
        image: RGB.
        size: side of the result in pixels.
        crop: which part of the long side is kept.
        rng: draws the place of a random crop.
    """
    from PIL import Image

    shortest = min(image.size)
    width, height = (max(size, round(side / shortest * size)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    if crop == "random":
        if rng is None:
            raise ValueError("a random crop needs rng")
        left, top = (int(rng.integers(0, spare + 1)) for spare in (width - size, height - size))
    return resized.crop((left, top, left + size, top + size))


def to_array(
    image: Image.Image,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    rescale: float = 1 / 255,
) -> np.ndarray:
    """Return `(pixels * rescale - mean) / std` as float32 [C, H, W], C being 3, or 1 for a grey image."""
    import numpy as np

    pixels = np.asarray(image, dtype=np.float32)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    count = pixels.shape[2]
    shift = np.asarray(mean[:count], dtype=np.float32)
    scale = np.asarray(std[:count], dtype=np.float32)
    pixels = (pixels * np.float32(rescale) - shift) / scale
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class ImageProcessor:
    """Turn pictures into {"pixels": [C, S, S] float32}, and decoded pixels in [-1, 1] back into pictures.

    Serves understanding and generation encoders; a component's processor constructs it from its
    options. Picklable, without state.
    """

    suffix = ".png"

    def __init__(
        self,
        image_size: int,
        *,
        fit: Literal["pad", "crop"] = "pad",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        channels: Literal[1, 3] = 3,
        tokens: int = 1,
        background: tuple[int, int, int] = (127, 127, 127),
        crop: Literal["center", "random"] = "center",
        rotate: bool = False,
    ) -> None:
        """Set the size and the fit.

        Args:
            image_size: side S in pixels.
            fit: "pad" (understanding) or "crop" (generation).
            mean: subtracted from pixels in [0, 1], by channel.
            std: divides them then.
            channels: 3 for RGB, 1 for grey.
            tokens: tokens that the encoder makes of a picture.
            background: colour of the padding.
            crop: part of the long side that "crop" keeps; "random" is drawn from the picture's
                content, so that a sample is the same each time it is read.
            rotate: apply the EXIF orientation.
        """
        self.image_size = image_size
        self.fit = fit
        self.mean, self.std = tuple(mean), tuple(std)
        self.channels = channels
        self.tokens = tokens
        self.background = background
        self.crop = crop
        self.rotate = rotate

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return {"pixels": [C, S, S]} of a picture, or raise `BadSample`; see `open_image`."""
        image = self._fit(open_image(value, rotate=self.rotate))
        if self.channels == 1:
            image = image.convert("L")
        return {"pixels": to_array(image, self.mean, self.std)}

    def _fit(self, image: Image.Image) -> Image.Image:
        import numpy as np

        if self.fit == "pad":
            return fit_pad(image, self.image_size, self.background)
        rng = None
        if self.crop == "random":
            rng = np.random.default_rng(zlib.crc32(image.tobytes()))
        return fit_crop(image, self.image_size, self.crop, rng)

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many tokens the encoder makes of one picture."""
        return self.tokens

    def dummy(self) -> dict[str, np.ndarray]:
        """Return a picture of zeros (mid-grey at the default mean) of the right size."""
        import numpy as np

        return {"pixels": np.zeros((self.channels, self.image_size, self.image_size), np.float32)}

    def restore(self, decoded: np.ndarray) -> Image.Image:
        """Return a picture of decoded pixels [C, H, W] in [-1, 1]. Source: Janus, `generation_inference.py`.

        Values are clipped, scaled to 255 and truncated.
        """
        import numpy as np
        from PIL import Image

        pixels = np.asarray(decoded, dtype=np.float32).transpose(1, 2, 0)
        if not math.isfinite(float(pixels.sum())):
            raise ValueError("decoded pixels are not finite")
        pixels = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def write(self, artefact: Image.Image, path: str, metadata: Mapping[str, str]) -> None:
        """Write a picture as PNG with its metadata in text chunks."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for key, text in metadata.items():
            info.add_text(key, text)
        artefact.save(path, format="PNG", pnginfo=info)
