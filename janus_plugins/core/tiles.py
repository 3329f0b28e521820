"""High resolution by tiles: a picture cut into squares that an encoder reads one by one.

Source: InternVL 1.5, section 3.2 (`dynamic_preprocess`); LLaVA 1.5-HD cuts alike. The positions of the
encoder are never resampled. PIL, numpy and torch are imported inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from janus_plugins.core.media import ImageProcessor, open_image, to_array

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

GREY = (127, 127, 127)
"""What pictures are padded with by default."""


def choose_grid(width: int, height: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """Return the (columns, rows) of at most `max_tiles` tiles whose shape is nearest to a picture's.

    Of equally near grids the larger one is taken where the picture fills more than half of it.

    Args:
        width: of the picture in pixels.
        height: of the picture in pixels.
        tile: side of a tile in pixels.
        max_tiles: most tiles.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if columns * rows <= max_tiles
    ]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        filled = width * height > 0.5 * tile * tile * columns * rows
        if distance < nearest or (distance == nearest and filled):
            best, nearest = (columns, rows), distance
    return best


def split(image: Image.Image, tile: int, max_tiles: int, thumbnail: bool) -> list[Image.Image]:
    """Return the tiles of a picture, row-major; where there are several, the whole picture small as the last.

    Args:
        image: RGB.
        tile: side of a tile in pixels.
        max_tiles: most tiles, the small picture not counted.
        thumbnail: whether to add the small picture.
    """
    from PIL import Image

    columns, rows = choose_grid(*image.size, tile, max_tiles)
    whole = image.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((column * tile, row * tile, (column + 1) * tile, (row + 1) * tile))
        for row in range(rows)
        for column in range(columns)
    ]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    return tiles


def check_fitting(max_tiles: int, fit: str, background: tuple[int, int, int]) -> None:
    """Refuse options of how a picture is fitted into one square where it is cut into tiles instead.

    Raises:
        ValueError: one of them is not the default.
    """
    set_ = [name for name, own in (("fit", fit != "pad"), ("background", background != GREY)) if own]
    if max_tiles > 1 and set_:
        raise ValueError(
            f"{' and '.join(set_)} say how a picture is fitted into one square, but with max_tiles "
            f"{max_tiles} it is stretched to whole tiles; leave them out, or set max_tiles to 1"
        )


def most_tiles(max_tiles: int, thumbnail: bool) -> int:
    """Return the most squares that `split` makes of a picture."""
    return max_tiles + int(thumbnail and max_tiles > 1)


class TiledProcessor(ImageProcessor):
    """Turn pictures into {"pixels": [tiles, C, S, S]}; with `max_tiles` 1 into [C, S, S] as `ImageProcessor`.

    Args:
        image_size: side S of a tile in pixels.
        max_tiles: most tiles of a picture.
        thumbnail: whether the whole picture follows its tiles.
        options: of `ImageProcessor`; `tokens` counts those of one tile.
    """

    def __init__(self, image_size: int, *, max_tiles: int, thumbnail: bool, **options: Any) -> None:
        super().__init__(image_size, **options)
        self.max_tiles, self.thumbnail = max_tiles, thumbnail

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        """Return {"pixels": [tiles, C, S, S]} of a picture, or raise `BadSample`; see `open_image`."""
        if self.max_tiles == 1:
            return super().__call__(value)
        import numpy as np

        image = open_image(value, rotate=self.rotate)
        tiles = split(image, self.image_size, self.max_tiles, self.thumbnail)
        if self.channels == 1:
            tiles = [each.convert("L") for each in tiles]
        return {"pixels": np.stack([to_array(each, self.mean, self.std) for each in tiles])}

    def num_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Answer how many tokens the encoder makes of one picture's tiles together."""
        return self.tokens * (len(arrays["pixels"]) if self.max_tiles > 1 else 1)

    def dummy(self) -> dict[str, np.ndarray]:
        """Return one tile of zeros."""
        single = super().dummy()
        return single if self.max_tiles == 1 else {"pixels": single["pixels"][None]}


def read_tiles(items: Mapping[str, Tensor], read: Callable[[Tensor], Tensor]) -> Tensor:
    """Run an encoder on collated pictures [N, C, S, S], or on every tile of [N, tiles, C, S, S] at once.

    Args:
        items: {"pixels"}, and "pixels_lengths" where the number of tiles varies.
        read: pixels [B, C, S, S] to tokens [B, T, width]; called once, B at least 1.

    Returns:
        Tokens [N, T, width], or [N, tiles * T, width] with zeros where a picture has fewer tiles.
    """
    import torch

    pixels = items["pixels"]
    squares = pixels.reshape(-1, *pixels.shape[-3:])
    most = pixels.shape[1] if pixels.ndim == 5 else 1
    lengths = items.get("pixels_lengths")
    there = torch.ones(len(squares), dtype=torch.bool, device=pixels.device)
    if lengths is not None:
        there = (torch.arange(most, device=pixels.device) < lengths.to(pixels.device)[:, None]).flatten()
        squares = squares[there]
    # Not every encoder can reshape an empty batch.
    given = squares if len(squares) else pixels.new_zeros(1, *pixels.shape[-3:])
    tokens = read(given)[: len(squares)]
    if lengths is not None:
        placed = tokens.new_zeros(len(there), *tokens.shape[1:])
        tokens = placed.index_copy(0, there.nonzero()[:, 0], tokens)
    return tokens.reshape(len(pixels), most * tokens.shape[1], tokens.shape[2])
