"""One made model in every layout: official and transformers folders in bf16 and fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

import janus_plugins as jp
from janus_plugins.model.unified import UnifiedModel
from tests.conversion.made import make_model, make_tokenizer, official_tensors, write_official


@pytest.fixture(scope="session")
def oracle() -> JanusForConditionalGeneration:
    """transformers' model, fp32."""
    return make_model(make_tokenizer())


@pytest.fixture(scope="session")
def tensors(oracle: JanusForConditionalGeneration) -> dict[str, Tensor]:
    """Its weights under the official names, with extras, in bf16."""
    return {name: tensor.to(torch.bfloat16) for name, tensor in official_tensors(oracle).items()}


@pytest.fixture(scope="session")
def official(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("made") / "official", tensors, make_tokenizer())


@pytest.fixture(scope="session")
def exact(oracle: JanusForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout in fp32."""
    folder = tmp_path_factory.mktemp("made") / "exact"
    return write_official(folder, official_tensors(oracle), make_tokenizer())


@pytest.fixture(scope="session")
def model(exact: Path) -> UnifiedModel:
    """Ours, loaded from the official layout in fp32."""
    return jp.load(exact)


@pytest.fixture(scope="session")
def converted(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformers layout that we write of it."""
    folder = tmp_path_factory.mktemp("made") / "transformers"
    jp.convert(exact, folder, layout="transformers")
    return folder


@pytest.fixture(scope="session")
def theirs(converted: Path) -> JanusForConditionalGeneration:
    """transformers' model, loaded from what we wrote."""
    return JanusForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def processor(converted: Path) -> JanusProcessor:
    return JanusProcessor.from_pretrained(converted, backend="pil")
