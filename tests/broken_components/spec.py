"""Specs of components that keep their contract, of each kind that the broken ones are variations of."""

from __future__ import annotations

from typing import Any

import numpy as np

from janus_plugins import (
    CONTRACT_VERSION,
    AdapterFacts,
    BadSample,
    ComponentConfig,
    ComponentSpec,
    GenerationFacts,
    Kind,
    UnderstandingFacts,
)

LENGTH, WIDTH, TOKENS, CODES = 12, 8, 3, 10


class EncoderConfig(ComponentConfig):
    def facts(self) -> UnderstandingFacts:
        return UnderstandingFacts("signal", WIDTH, TOKENS, TOKENS)


class CodecConfig(ComponentConfig):
    def facts(self) -> GenerationFacts:
        return GenerationFacts("signal", "codes", LENGTH, 4, CODES, (LENGTH,))


class AdapterConfig(ComponentConfig):
    def facts(self, source: Any, model: Any) -> AdapterFacts:
        return AdapterFacts("features", source.width, model.width)


class Signals:
    suffix = ".txt"

    def __init__(self, config: Any) -> None:
        self.tokens = config.facts().tokens

    def __call__(self, value: object) -> dict[str, np.ndarray]:
        array = np.asarray(value)
        if array.dtype.kind != "f" or array.shape != (LENGTH,):
            raise BadSample(f"a signal is {LENGTH} floats")
        return {"signal": array.astype(np.float32)}

    def num_tokens(self, arrays: dict[str, np.ndarray]) -> int:
        return int(self.tokens)

    def dummy(self) -> dict[str, np.ndarray]:
        return {"signal": np.zeros(LENGTH, np.float32)}

    def examples(self) -> list[object]:
        return [np.random.default_rng(seed).normal(size=LENGTH) for seed in range(4)]

    def restore(self, decoded: np.ndarray) -> str:
        return " ".join(map(str, decoded))

    def write(self, artefact: str, path: str, metadata: dict[str, str]) -> None:
        with open(path, "w") as file:
            file.write(artefact)


def variation(kind: Kind, factory: str = "", processor: str = "", config: Any = None) -> ComponentSpec:
    """A spec whose factory, processor or config may be a broken one, as "module:name"."""
    plain = {
        Kind.UNDERSTANDING_ENCODER: (EncoderConfig, "build_encoder"),
        Kind.GENERATION_ENCODER: (CodecConfig, "build_codec"),
        Kind.ADAPTER: (AdapterConfig, "build_adapter"),
    }[kind]
    encodes = kind != Kind.ADAPTER
    return ComponentSpec(
        kind=kind,
        name="tried",
        config=config or plain[0],
        factory=factory or f"{__package__}.good:{plain[1]}",
        processor=(processor or f"{__name__}:Signals") if encodes else None,
        contract=CONTRACT_VERSION,
    )
