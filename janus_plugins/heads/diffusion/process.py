"""The two processes between latents and noise: what the network learns, and how latents are made by it.

Neither knows the network: `denoise(noisy, times)` answers [..., outputs]. Sources: Ho et al. 2020 (arXiv
2006.11239), Nichol and Dhariwal 2021 (2102.09672: cosine schedule, learnt variances, fewer steps), and for
the flow Liu et al. 2022 (2209.03003), with the times of Esser et al. 2024 (2403.03206).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Doubles = NDArray[np.float64]

_OFFSET = 0.008
_LARGEST_BETA = 0.999
_LEAST_KEPT = 1e-3
"""Share of a latent's variance that is left where making one begins: step 978 of 1000."""


class Process(Protocol):
    """Lead from latents to noise in training, and back."""

    def outputs(self, size: int) -> int:
        """Return how many numbers the network answers for latents of width `size`."""
        ...

    def losses(self, denoise: Denoise, latents: Tensor) -> Tensor:
        """Return the loss [...] of latents [..., C], each at a time and with a noise of its own.

        Drawn with torch's own random numbers, whose state training keeps.
        """
        ...

    def draws(self) -> int:
        """Return how many noises `sample` wants."""
        ...

    def sample(self, denoise: Denoise, start: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """Return latents [B, C].

        Args:
            denoise: the network, under guidance.
            start: zeros [B, C], the middle of all noise (float32).
            noise: standard normal numbers [B, draws(), C]; None to begin in the middle and add none.
            temperature: what noise on the way is multiplied with.
        """
        ...


@dataclass(frozen=True)
class Chain:
    """Hold the numbers of a chain of noising steps; float64 [n], the least noise first.

    Attributes:
        times: the step of training that each stands for, which the network is told.
        kept: share of the latent's variance that is left (alpha bar).
        beta: variance that a step adds.
        log_least, log_most: bounds of the logarithm of the variance of a step back: the true one where the
            latent is known, and `beta`.
    """

    times: Doubles
    kept: Doubles
    beta: Doubles
    log_least: Doubles
    log_most: Doubles

    @property
    def alpha(self) -> Doubles:
        """Return the share of variance that a step keeps."""
        return 1 - self.beta

    @property
    def pull(self) -> Doubles:
        """Return what a step back's mean differs by, for each unit of the predicted noise."""
        pull: Doubles = self.beta / np.sqrt((1 - self.kept) * self.alpha)
        return pull


@cache
def chain(train_steps: int, steps: int | None = None) -> Chain:
    """Return the cosine schedule: all of its `train_steps`, or `steps` of them to make latents by."""
    at = (np.arange(train_steps + 1) / train_steps + _OFFSET) / (1 + _OFFSET)
    ideal = np.cos(at * np.pi / 2) ** 2
    whole = np.cumprod(1 - np.minimum(1 - ideal[1:] / ideal[:-1], _LARGEST_BETA))
    times = np.arange(train_steps) if steps is None else _spaced(whole, steps)
    kept = whole[times]
    before = np.append(1.0, kept[:-1])
    beta = 1 - kept / before
    least = beta * (1 - before) / (1 - kept)
    least[0] = least[1]  # the first is 0: nothing is left to draw
    return Chain(times.astype(np.float64), kept, beta, np.log(least), np.log(beta))


def _spaced(kept: Doubles, steps: int) -> NDArray[np.int64]:
    """Return about `steps` evenly spaced times, up to the last that keeps something of the latent.

    Beyond, a latent with noise is noise, and a step back multiplies each error of the network a hundredfold:
    pictures are clipped there, latents have no bounds.
    """
    last = int(np.flatnonzero(kept >= _LEAST_KEPT)[-1])
    return np.unique(np.round(np.linspace(0, last, steps)).astype(np.int64))


class Diffusion:
    """Predict the noise in a latent, and with `learn_variance` how far a step back may stray.

    Args:
        train_steps: steps in training.
        sample_steps: steps of making a latent.
        learn_variance: answer a variance for each number too; else a step back has the least of its bounds.
    """

    def __init__(self, train_steps: int, sample_steps: int, learn_variance: bool) -> None:
        self.train_steps, self.sample_steps = train_steps, sample_steps
        self.learn_variance = learn_variance

    def outputs(self, size: int) -> int:
        """Return the noise's numbers, and as many for its variance."""
        return size * (1 + self.learn_variance)

    def losses(self, denoise: Denoise, latents: Tensor) -> Tensor:
        """Return the squared error of the noise; with a learnt variance, its part of the bound beside it."""
        steps = chain(self.train_steps)
        times = torch.randint(self.train_steps, latents.shape[:-1], device=latents.device)
        noise = torch.randn_like(latents)
        kept = _at(steps.kept, times)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        answer = denoise(noisy, times.float())
        size = latents.shape[-1]
        error = noise - answer[..., :size]
        losses = error.square().mean(-1)
        if not self.learn_variance:
            return losses
        return losses + self._bound(steps, times, error.detach(), answer[..., size:])

    @staticmethod
    def _bound(steps: Chain, times: Tensor, error: Tensor, spread: Tensor) -> Tensor:
        """Return the bits by which a step back with the learnt variance differs from the true one [...].

        The mean's error is given, not learnt here. The last step's term is the latent's own negative
        log-density; the code of MAR bins latents there as if they were pixels of 8 bits.
        """
        least, most = _at(steps.log_least, times), _at(steps.log_most, times)
        log_variance = _between(spread, least, most)
        stray = (_at(steps.pull, times) * error).square() * torch.exp(-log_variance)
        apart = log_variance - least - 1 + torch.exp(least - log_variance) + stray
        last = log_variance + math.log(2 * math.pi) + stray
        return torch.where((times == 0)[..., None], last, apart).mean(-1) / (2 * math.log(2))

    def draws(self) -> int:
        """Return one noise to begin with and one for every step but the last."""
        return len(chain(self.train_steps, self.sample_steps).times)

    def sample(self, denoise: Denoise, start: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """Go back step by step; without noise from its middle, and always to the mean of the step.

        As in MAR, temperature scales what is drawn on the way, not the noise to begin with.
        """
        steps = chain(self.train_steps, self.sample_steps)
        number, size = len(steps.times), start.shape[-1]
        alpha, pull = steps.alpha.tolist(), steps.pull.tolist()
        x = start if noise is None else noise[:, 0]
        for index in reversed(range(number)):
            answer = denoise(x, start.new_full((1,), float(steps.times[index])))
            x = x / math.sqrt(alpha[index]) - pull[index] * answer[:, :size]
            if noise is not None and index > 0:
                bounds = float(steps.log_least[index]), float(steps.log_most[index])
                log_variance = self._log_variance(answer[:, size:], *bounds)
                x = x + temperature * (log_variance / 2).exp() * noise[:, number - index]
        return x

    def _log_variance(self, spread: Tensor, least: float, most: float) -> Tensor:
        """Return the logarithm of the variance of a step back: the least there is, where it is not learnt."""
        if not self.learn_variance:
            return spread.new_tensor(least)
        return _between(spread, least, most)


class Flow:
    """Predict the straight way from noise to latent.

    Args:
        scale: what the network's times run to; the process's run from 0 (noise) to 1.
        sample_steps: equal steps of making a latent (Euler's).
    """

    def __init__(self, scale: int, sample_steps: int) -> None:
        self.scale, self.sample_steps = float(scale), sample_steps

    def outputs(self, size: int) -> int:
        """Return the numbers of a way."""
        return size

    def losses(self, denoise: Denoise, latents: Tensor) -> Tensor:
        """Return the squared error of the way at a time that is a normal's sigmoid, most often halfway."""
        times = torch.randn(latents.shape[:-1], device=latents.device).sigmoid()
        noise = torch.randn_like(latents)
        noisy = noise + times[..., None] * (latents - noise)
        guess = denoise(noisy, times * self.scale)
        return (latents - noise - guess).square().mean(-1)

    def draws(self) -> int:
        """Return the one noise to begin with."""
        return 1

    def sample(self, denoise: Denoise, start: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """Follow the flow; temperature scales the noise to begin with, the only one there is."""
        x = start if noise is None else temperature * noise[:, 0]
        for index in range(self.sample_steps):
            time = start.new_full((1,), index / self.sample_steps * self.scale)
            x = x + denoise(x, time) / self.sample_steps
        return x


def _at(table: Doubles, times: Tensor) -> Tensor:
    """Return a table's numbers at times [...] as [..., 1] (float32)."""
    return torch.from_numpy(table).float().to(times.device)[times][..., None]


def _between(spread: Tensor, least: Tensor | float, most: Tensor | float) -> Tensor:
    """Return the logarithm of the variance that an answer in [-1, 1] stands for, between its bounds."""
    share = (spread + 1) / 2
    return share * most + (1 - share) * least
