"""A unified model of a few thousand weights, made of hand-written parts that keep the contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from janus_plugins.core.choice import choose, guide
from janus_plugins.core.contracts import AttentionPlan, Cached, Packed
from janus_plugins.core.errors import BadSample
from janus_plugins.core.facts import (
    AdapterFacts,
    GenerationFacts,
    HeadFacts,
    LanguageModelFacts,
    UnderstandingFacts,
)
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plan import GenerationPlan, ModelPlan, Owner, Part, RunPlan, UnderstandingPlan
from janus_plugins.core.schema import RunConfig, TokenizerBlock
from janus_plugins.core.specs import ComponentConfig, ComponentSpec
from janus_plugins.model.unified import GenerationPath, UnderstandingPath, UnifiedModel
from janus_plugins.sequence.templates import resolve_template, special_tokens
from janus_plugins.sequence.tokenizers import build_tokenizer

WIDTH, POSITIONS, CODES, TOKENS, LATENT = 16, 96, 11, 6, 3

RUN = RunConfig.model_validate(
    {
        "name": "toy",
        "model": {
            "language_model": {"use": "toy", "tokenizer": {"type": "bytes"}},
            "understanding": {"image": {"encoder": {"use": "toy"}, "adapter": {"use": "toy"}}},
            "generation": {
                name: {"encoder": {"use": "toy"}, "adapter": {"use": "toy"}, "head": {"use": "toy"}}
                for name in ("image", "sound")
            },
        },
    }
)


class ToyCache:
    """Keys and values by layer [B, length, M], and which slots were written."""

    def __init__(self, batch: int, length: int) -> None:
        self.batch, self.length = batch, length
        self.layers: dict[int, list[Tensor]] = {}

    def write(self, layer: int, start: int, *new: Tensor) -> list[Tensor]:
        assert len(new[0]) == self.batch
        assert start + new[0].shape[1] <= self.length
        if layer not in self.layers:
            self.layers[layer] = [each.new_full((self.batch, self.length, WIDTH), torch.nan) for each in new]
        stop = start + new[0].shape[1]
        for kept, each in zip(self.layers[layer], new, strict=True):
            kept[:, start:stop] = each
        return [kept[:, :stop] for kept in self.layers[layer]]


class SharingCache(ToyCache):
    """A cache that can copy rows."""

    def select(self, rows: Tensor) -> SharingCache:
        copied = SharingCache(len(rows), self.length)
        copied.layers = {layer: [each[rows] for each in kept] for layer, kept in self.layers.items()}
        return copied


class ToyBlock(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, states: Tensor, mask: Tensor, start: int, cache: ToyCache | None) -> Tensor:
        query, key, value = self.project(layer_norm(states, (WIDTH,))).chunk(3, -1)
        if cache is not None:
            key, value = cache.write(self.layer, start, key, value)
        scores = (query @ key.transpose(1, 2)) / WIDTH**0.5
        states = states + scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value
        return states + self.mlp(layer_norm(states, (WIDTH,)))


class ToyTextHead(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.output = nn.Linear(WIDTH, size)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)


class ToyLanguageModel(nn.Module):
    """Learnt absolute positions, so that a wrong position changes the answer."""

    cache_class: type[ToyCache] = ToyCache

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.places = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(ToyBlock(layer) for layer in range(2))
        self.text_head = ToyTextHead(vocab_size)
        self.calls: list[tuple[int, int]] = []

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids)

    def new_cache(self, batch: int, length: int) -> ToyCache:
        return self.cache_class(batch, length)

    def forward(
        self, embeds: Tensor, positions: Tensor, attention: AttentionPlan, cache: Any = None
    ) -> Tensor:
        self.calls.append((embeds.shape[0], embeds.shape[1]))
        states = embeds + self.places(positions)
        start = attention.start if isinstance(attention, Cached) else 0
        mask = toy_mask(attention, *embeds.shape[:2])
        for block in self.blocks:
            states = block(states, mask, start, cache)
        return layer_norm(states, (WIDTH,))


def toy_mask(attention: AttentionPlan, rows: int, slots: int) -> Tensor:
    """Return which slots each slot sees [B, S, seen]; a slot always sees itself."""
    if isinstance(attention, Packed):
        segment = torch.full((rows * slots,), -1)
        for group in attention.groups:
            for flat in group:
                segment[flat] = flat[0]
        segment = segment.view(rows, slots)
        same = segment[:, :, None] == segment[:, None, :]
        last = torch.arange(slots)
        if attention.reach is not None:
            (last,) = attention.reach  # one row of one sample
        return same & (torch.arange(slots) <= last[:, None]) | torch.eye(slots, dtype=torch.bool)
    stop = attention.start + slots
    keys, queries = torch.arange(stop), torch.arange(attention.start, stop)[:, None]
    together = queries >= stop - attention.block
    mask = ((keys <= queries) | together).expand(rows, slots, stop)
    if attention.visible is not None:
        mask = mask & attention.visible[:, None, :] | (keys == queries)
    return mask


class ToyCodeAdapter(nn.Module):
    """Treats every code alike."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(CODES, WIDTH)

    def forward(self, source: Tensor) -> Tensor:
        return self.table(source)


class PlacedCodeAdapter(ToyCodeAdapter):
    """Adds where in the item a code stands, so that a code's embedding needs what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(TOKENS, WIDTH)

    def forward(self, source: Tensor) -> Tensor:
        return self.table(source) + self.places(torch.arange(source.shape[1]))


class ToyLatentAdapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(LATENT, WIDTH)

    def forward(self, source: Tensor) -> Tensor:
        return self.linear(source)


class ToyCodeHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(WIDTH, CODES)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)

    def sample(self, hidden, unconditional, *, guidance, temperature, draws):  # type: ignore[no-untyped-def]
        other = None if unconditional is None else self.logits(unconditional)
        return choose(guide(self.logits(hidden), other, guidance), temperature=temperature, draws=draws)


class ToyLatentHead(nn.Module):
    """A normal distribution around a linear answer."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(WIDTH, LATENT)

    def sample(self, hidden, unconditional, *, guidance, temperature, draws):  # type: ignore[no-untyped-def]
        other = None if unconditional is None else self.output(unconditional)
        return guide(self.output(hidden), other, guidance) + temperature * draws.normal(LATENT)


class ToyReader(nn.Module):
    """Features of an item of any length: [N, L, 3] -> [N, L, 5]. Mixes the whole item, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, items: dict[str, Tensor]) -> Tensor:
        values = self.linear(items["values"])
        return values + values.mean(1, keepdim=True)


class ToyCoder(nn.Module):
    """Code k is a grey of level k: pixels [N, 1, 2, 3] <-> codes [N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(-1, 1, CODES))

    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return (items["pixels"].flatten(1)[..., None] - self.levels).abs().argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.levels[codes].view(-1, 1, 2, 3)


class ToySoundCoder(nn.Module):
    def encode(self, items: dict[str, Tensor]) -> Tensor:
        return items["pixels"].view(-1, TOKENS, LATENT)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.flatten(1)


class ToyConfig(ComponentConfig):
    """Stands in for every component's options."""


class ReadProcessor:
    def __init__(self, config: ToyConfig) -> None:
        del config

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        if isinstance(value, (str, Path)):
            if not Path(value).is_file():
                raise BadSample(f"{value}: no such file")
            value = json.loads(Path(value).read_text())
        return {"values": np.asarray(value, dtype=np.float32).reshape(-1, 3)}

    def num_tokens(self, arrays: dict[str, np.ndarray]) -> int:
        return len(arrays["values"])

    def dummy(self) -> dict[str, np.ndarray]:
        return {"values": np.zeros((1, 3), np.float32)}


class DrawProcessor:
    suffix = ".png"

    def __init__(self, config: ToyConfig) -> None:
        del config

    def __call__(self, value: Image.Image) -> dict[str, np.ndarray]:
        pixels = np.asarray(value.convert("L"), dtype=np.float32) / 127.5 - 1
        return {"pixels": pixels.reshape(1, 2, 3)}

    def num_tokens(self, arrays: dict[str, np.ndarray]) -> int:
        return TOKENS

    def dummy(self) -> dict[str, np.ndarray]:
        return {"pixels": np.zeros((1, 2, 3), np.float32)}

    def restore(self, decoded: np.ndarray) -> Image.Image:
        return Image.fromarray(((decoded.reshape(2, 3) + 1) * 127.5).round().astype(np.uint8))

    def write(self, artefact: Image.Image, path: str, metadata: dict[str, str]) -> None:
        chunk = PngInfo()
        for name, text in metadata.items():
            chunk.add_text(name, text)
        artefact.save(path, pnginfo=chunk)


class SoundProcessor(DrawProcessor):
    suffix = ".npy"

    def restore(self, decoded: np.ndarray) -> np.ndarray:
        return decoded

    def write(self, artefact: np.ndarray, path: str, metadata: dict[str, str]) -> None:
        np.save(path, artefact)


def _part(address: str, kind: Kind, facts: Any, processor: type | None = None) -> Part:
    target = None if processor is None else f"{__name__}:{processor.__name__}"
    spec = ComponentSpec(
        kind=kind, name="toy", config=ToyConfig, factory=f"{__name__}:toy_model", contract=1, processor=target
    )
    return Part(address, spec, Owner("toys", "1"), ToyConfig(), facts)


def toy_plan(vocab_size: int) -> RunPlan:
    """Return the plan of the toy model: it reads images, and makes images (codes) and sounds (latents)."""
    language = LanguageModelFacts(WIDTH, vocab_size, POSITIONS, 2, 1, 1)
    reads = UnderstandingPlan(
        _part(
            "understanding.image.encoder",
            Kind.UNDERSTANDING_ENCODER,
            UnderstandingFacts("image", 5, None, 9),
            ReadProcessor,
        ),
        _part("understanding.image.adapter", Kind.ADAPTER, AdapterFacts("features", 5, WIDTH)),
    )
    makes = {
        "image": GenerationFacts("image", "codes", TOKENS, 1, CODES, (2, 3)),
        "sound": GenerationFacts("sound", "latents", TOKENS, LATENT, None, (TOKENS,)),
    }
    processors = {"image": DrawProcessor, "sound": SoundProcessor}
    generation = {
        name: GenerationPlan(
            _part(f"generation.{name}.encoder", Kind.GENERATION_ENCODER, facts, processors[name]),
            _part(f"generation.{name}.adapter", Kind.ADAPTER, AdapterFacts(facts.form, facts.width, WIDTH)),
            _part(f"generation.{name}.head", Kind.HEAD, HeadFacts(facts.form, WIDTH, facts.width)),
        )
        for name, facts in makes.items()
    }
    model = ModelPlan(
        _part("language_model", Kind.LANGUAGE_MODEL, language),
        _part("language_model.text_head", Kind.HEAD, HeadFacts("text", WIDTH, vocab_size)),
        {"image": reads},
        generation,
    )
    return RunPlan(RUN, model, {})


def toy_model(seed: int = 0, adapter: type[nn.Module] = ToyCodeAdapter) -> UnifiedModel:
    """Build the toy model with seeded weights, large enough that choices depend on the context."""
    tokenizer = build_tokenizer(TokenizerBlock(type="bytes"), special_tokens(RUN.model))
    vocab_size = len(tokenizer) + 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UnifiedModel(
            toy_plan(vocab_size),
            tokenizer,
            resolve_template(RUN.model.language_model.template),
            ToyLanguageModel(vocab_size),
            {"image": UnderstandingPath(ToyReader(), nn.Linear(5, WIDTH))},
            {
                "image": GenerationPath(ToyCoder(), adapter(), ToyCodeHead()),
                "sound": GenerationPath(ToySoundCoder(), ToyLatentAdapter(), ToyLatentHead()),
            },
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return model.eval()
