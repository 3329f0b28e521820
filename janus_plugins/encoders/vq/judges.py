"""What judges the semantic tokenizer in training: a teacher, a perceptual distance, a discriminator.

The first two are frozen and no part of the model: they are built when first needed, and stand in no
checkpoint. The discriminator learns beside the tokenizer, in the same stage and by the same optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from janus_plugins.core.accumulation import CountsBatches
from janus_plugins.core.errors import CheckpointError
from janus_plugins.core.weights import load_exactly, read_weights
from janus_plugins.encoders.vq.semantic_spec import DiscriminatorConfig, TeacherConfig

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of VGG-16's convolutions; 0 halves the picture."""


class Aside:
    """Hold a frozen module that its user's module tree must not contain; build it when first called."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self._build = build
        self._module: nn.Module | None = None

    def __call__(self, like: Tensor) -> nn.Module:
        """Return the module on the device and in the dtype of a tensor."""
        if self._module is None:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)  # without weights: the same one after every resume
                self._module = self._build().requires_grad_(False).eval()
        return self._module.to(like.device, like.dtype)


class Teacher(nn.Module):
    """Answer the features [N, T, width] that the semantic decoder is to learn."""

    def __init__(self, config: TeacherConfig, side: int) -> None:
        super().__init__()
        import timm

        self.pixels = side * config.patch_size
        self.trunk = timm.create_model(
            config.name,
            pretrained=False,
            num_classes=0,
            global_pool="",
            img_size=self.pixels,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
        )
        if config.weights is not None:
            self._load(config.weights)

    def _load(self, source: str) -> None:
        from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

        assert isinstance(self.trunk, VisionTransformer)
        try:
            fitted = checkpoint_filter_fn(dict(read_weights(source)), self.trunk)
        except (RuntimeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{source!r} does not fit the teacher: {error}") from error
        pool = {name for name in fitted if name.startswith("attn_pool.")}
        load_exactly(self.trunk, fitted, source, drop=pool)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Return features of pictures [N, 1 or 3, S, S] in [-1, 1], one for each code, row-major."""
        pixels = pixels.expand(-1, 3, -1, -1)
        if pixels.shape[-1] != self.pixels:
            wide = functional.interpolate(  # in fp32: a CPU has no such kernel of bf16
                pixels.float(), size=(self.pixels, self.pixels), mode="bilinear", antialias=True
            )
            pixels = wide.to(pixels.dtype)
        features: Tensor = self.trunk(pixels)
        return features


class Perceptual(nn.Module):
    """Compare pictures by VGG-16's activations at length 1, as LPIPS does; all its channels weigh the same.

    Source: Zhang et al. 2018 (arXiv 1801.03924), without the layers learnt from people's judgements.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _VGG16:
            if width:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            else:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        tensors = read_weights(source)
        classifier = {name for name in tensors if name.startswith("classifier.")}
        load_exactly(self, tensors, source, drop=classifier)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean distance of pictures [N, 1 or 3, S, S] in [-1, 1]."""
        both = torch.cat([made, wanted]).expand(-1, 3, -1, -1)
        x = ((both + 1) / 2 - self.mean) / self.std
        distance = x.new_zeros((), dtype=torch.float32)
        for index, layer in enumerate(self.features):
            last = index + 1 == len(self.features) or isinstance(self.features[index + 1], nn.MaxPool2d)
            x = layer(x)
            if last:  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                one, other = functional.normalize(x.float(), dim=1, eps=1e-10).chunk(2)
                distance = distance + (one - other).square().sum(1).mean()
        return distance


class Discriminator(CountsBatches, nn.Module):
    """Tell made pictures from real ones patch by patch (PatchGAN), and judge for both sides at once.

    A tokenizer and its discriminator want opposite things of the same logits. With one optimiser, the
    tokenizer's loss is written so that its gradient on the discriminator is zero, and the discriminator's
    so that it does not reach the tokenizer. GroupNorm in the place of LlamaGen's BatchNorm: what a picture
    is told does not depend on its batch mates, nor on ranks.
    """

    steps: Tensor

    def __init__(self, config: DiscriminatorConfig, channels: int) -> None:
        super().__init__()
        self.start = config.start
        widths = [config.channels * min(2**index, 8) for index in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for index, width in enumerate(widths[1:], start=1):
            stride = 2 if index < config.layers else 1
            layers.append(nn.Conv2d(widths[index - 1], width, 4, stride, 1, bias=False))
            layers += [nn.GroupNorm(math.gcd(32, width), width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the hinge losses of made and real pictures [N, C, S, S]; zero before `start`.

        "adversarial" has a gradient on `made` alone, "discriminator" on the discriminator alone.
        """
        fooled = self.layers(made).float().mean()
        faked = self.layers(made.detach()).float()
        # The same logits with the other sign: on the weights the two gradients cancel, `made` sees one.
        kept = faked.mean() - faked.mean().detach()
        hinge = functional.relu(1 - self.layers(real).float()).mean() + functional.relu(1 + faked).mean()
        on = (self.steps >= self.start).float()
        if self.training:
            self.steps.add_(int(self.ends_step()))
        return {"adversarial": (kept - fooled) * on, "discriminator": hinge / 2 * on}
