"""The made data sets through the reference's own data entries and processors; and what the slow tests change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from janus_plugins.core.catalogue import load_factory, load_processor
from janus_plugins.core.samples import Item, Sample
from janus_plugins.door import plan as plan_of

from .cut import NO_DOWNLOADS, TWO_LAYERS, steps
from .made import write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("reference")
    write_all(plan_of("janus_pro_1b").run.data, target, rows=2)
    return target


def test_every_data_set_of_both_papers_gives_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    plan = plan_of("janus_pro_1b")  # its base is janus_1.3b: the data sets of both
    assert set(plan_of("janus_1.3b").data) <= set(plan.data)
    shown, made = plan.model.understanding["image"].encoder, plan.model.generation["image"].encoder
    processors = {
        False: load_processor(shown.spec)(shown.config),
        True: load_processor(made.spec)(made.config),
    }
    for name, data in plan.data.items():
        source: Any = load_factory(data.part.spec)(data.part.config, data.facts)
        assert len(source) == 2, name
        sample = source[0]
        assert sample.task == ("interleaved" if name in ("wikihow", "wit") else data.block.task), name
        pictures = [part for part in parts(sample) if isinstance(part, Item)]
        assert len(pictures) == {"interleaved": 2, "text": 0}.get(sample.task, 1), name
        for picture in pictures:
            pixels = processors[picture.learn](picture.value)["pixels"]
            assert pixels.shape == (3, 384, 384), name


def parts(sample: Sample) -> Iterator[object]:
    return (part for turn in sample.turns for part in turn.parts)


def test_the_slow_tests_change_sizes_and_not_the_recipe() -> None:
    whole = plan_of("janus_1.3b").run.model_dump()
    cut = plan_of("janus_1.3b", [*NO_DOWNLOADS, *TWO_LAYERS, *steps(2, 5, 5)]).run.model_dump()
    changed = set(differences(whole, cut))
    tokenizer = ".model.language_model.tokenizer"
    assert {f"{tokenizer}.type", f"{tokenizer}.path"} <= changed
    ends = {path.rsplit(".", 1)[-1] for path in changed - {f"{tokenizer}.path"}}
    sizes = {"num_layers", "vocab_size", "steps", "batch", "warmup", "until", "after"}
    buckets = {"reduce_bucket_size", "allgather_bucket_size"}
    assert ends == sizes | buckets | {"type", "weights", "workers", "log_every"}


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in first.keys() | second.keys():
            yield from differences(first.get(key), second.get(key), f"{path}.{key}")
    elif isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        for index, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{path}.{index}")
    elif first != second:
        yield path
