"""Bring latents to about mean 0 and deviation 1, which a head that adds noise to them expects, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from janus_plugins.core.accumulation import CountsBatches

_SLOWEST = 0.05
"""Least weight of a new batch in a measured statistic: it forgets what lies some 20 batches back."""

_LEAST = 1e-6
"""Least deviation that is divided by."""


class LatentScale(CountsBatches, nn.Module):
    """Map latents z [N, C, H, W] to `(z - shift) * scale`, and back.

    Numbers that the options give hold for all channels and never change. Else shift and scale are a
    channel's own: published ones, or the statistics of latents seen in training, which a checkpoint keeps.

    Args:
        channels: C.
        shift: a fixed shift.
        scale: a fixed scale; None to be measured.
    """

    statistics: Tensor
    batches: Tensor
    seen: Tensor

    def __init__(self, channels: int, shift: float, scale: float | None) -> None:
        super().__init__()
        self.fixed = None if scale is None else (shift, scale)
        if self.fixed is None:
            start = torch.stack([torch.zeros(channels), torch.ones(channels)])
            # The bits of float32, as integers: a model that is taken to 16 bits leaves them alone, in which
            # a running mean would stand still (its steps are below the last bit).
            self.register_buffer("statistics", start.view(torch.int32))
            self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
            # What the batches of a step have given so far: sums, sums of squares, numbers (float64's bits).
            self.register_buffer("seen", torch.zeros(3, channels, dtype=torch.int64), persistent=False)

    def forward(self, latents: Tensor, *, back: bool = False) -> Tensor:
        """Return scaled latents, or with `back` the autoencoder's own (float32)."""
        shift, scale = self._shift_and_scale()
        scaled: Tensor = latents.float() / scale + shift if back else (latents.float() - shift) * scale
        return scaled

    def measure(self, means: Tensor, variances: Tensor | None) -> None:
        """Take note of a batch of latents, unless the scale is fixed; once a step, of those of all ranks.

        Args:
            means: of the latents [N, C, H, W].
            variances: around them, where latents are drawn.
        """
        if self.fixed is not None:
            return
        with torch.no_grad():
            seen = means.float()
            squares = seen.square() if variances is None else seen.square() + variances.float()
            sums = torch.stack([each.double().sum((0, 2, 3)) for each in (seen, squares, seen * 0 + 1)])
            total = self.seen.view(torch.float64)
            total.add_(sums)
            if not self.ends_step():
                return
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(total)
            self.batches.add_(1)
            weight = (1 / self.batches.float()).clamp(min=_SLOWEST)
            self._write(self._read().lerp((total[:2] / total[2]).float(), weight))
            total.zero_()

    def publish(self, description: Mapping[str, Any]) -> None:
        """Take what diffusers' config.json says: `scaling_factor`, a shift or statistics if there are any."""
        if self.fixed is not None:
            return
        mean = self._by_channel(description.get("latents_mean") or description.get("shift_factor") or 0.0)
        spread = self._by_channel(description.get("latents_std") or 1.0)
        deviation = spread / float(description["scaling_factor"])
        self._write(torch.stack([mean, deviation.square() + mean.square()]))
        self.batches.fill_(round(1 / _SLOWEST))

    def _by_channel(self, value: float | Sequence[float]) -> Tensor:
        device, channels = self.statistics.device, self.statistics.shape[1]
        return torch.as_tensor(value, dtype=torch.float32, device=device).expand(channels)

    def _shift_and_scale(self) -> tuple[Any, Any]:
        if self.fixed is not None:
            return self.fixed
        mean, squares = self._read()
        deviation = (squares - mean.square()).clamp(min=_LEAST**2).sqrt()
        return mean[:, None, None], 1 / deviation[:, None, None]

    def _read(self) -> Tensor:
        """Return means and mean squares by channel [2, C] (float32)."""
        return self.statistics.view(torch.float32)

    def _write(self, values: Tensor) -> None:
        self.statistics.copy_(values.contiguous().view(torch.int32))
