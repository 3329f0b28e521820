"""Real files through the real host and processors: what cannot be read is named, the rest trains."""

from __future__ import annotations

import io
import json
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from janus_plugins.core.errors import BadSample
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.runfile import load_run
from janus_plugins.core.wiring import resolve
from janus_plugins.data.loader import StepBatch, StepLoader
from janus_plugins.data.texts import run_texts
from janus_plugins.sequence.assemble import finite
from janus_plugins.sequence.templates import special_tokens
from janus_plugins.sequence.tokenizers import TextTokenizer, build_tokenizer
from tests.tiny import write_tiny

GOOD = 6


def jpeg(shade: int) -> bytes:
    rng = np.random.default_rng(shade)
    target = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(target, "JPEG")
    return target.getvalue()


def huge_png() -> bytes:
    """Return a few bytes that claim to be 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_items_that_are_not_finite_are_refused(value: float) -> None:
    array = np.full((3, 4), 3e38, np.float32)  # whose sum is infinite
    whole = {"map": array, "marks": np.arange(3)}
    assert finite(whole) is whole
    array[1, 2] = value
    with pytest.raises(BadSample, match="map holds NaN or infinite values, 1 of 12"):
        finite(whole)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "answered a NoneType, not named numpy arrays"),
        ({"map": "abc"}, "answered map as a str, not a numpy array"),
        ({"map": [[1.0], []]}, "answered map as a list, not a numpy array: "),
        ({"map": threading.Lock()}, "answered map as a lock, not a numpy array"),
        ({"map": np.array(["a"])}, "answered map as an array of <U1, not of numbers"),
        ({"map": np.array([None])}, "answered map as an array of object, not of numbers"),
        ({"map": torch.ones(2, device="meta")}, "answered map as a Tensor, not a numpy array: "),
        (
            {"map": torch.ones(2, requires_grad=True)},
            "answered map as a Tensor, not a numpy array: Can't call",
        ),
        ({"map": torch.tensor([1.0, float("nan")])}, "map holds NaN or infinite values, 1 of 2"),
    ],
)
def test_what_is_no_arrays_of_numbers_is_a_bad_sample(tmp_path: Path, answer: Any, said: str) -> None:
    """It would end a data worker, or the run, by an error that names no plugin."""
    part = resolve(load_run(write_tiny(tmp_path))).model.understanding["image"].encoder
    with pytest.raises(BadSample) as refused:
        finite(answer, part)
    assert said in str(refused.value)
    if "answered" in said:
        named = "the processor of understanding.image.encoder: understanding_encoder/siglip of janus-plugins"
        assert str(refused.value).startswith(named)


def test_tensors_and_numbers_of_a_processor_become_arrays() -> None:
    whole = finite({"map": torch.arange(3), "marks": np.arange(2), "row": [1.5, 2], "length": 4})
    assert {name: (type(value), value.tolist()) for name, value in whole.items()} == {
        "map": (np.ndarray, [0, 1, 2]),
        "marks": (np.ndarray, [0, 1]),
        "row": (np.ndarray, [1.5, 2.0]),
        "length": (np.ndarray, 4),
    }


def write_rows(folder: Path) -> None:
    """Write good rows, and one of each way in which a row can be broken."""
    files = {f"good{index}.jpg": jpeg(index) for index in range(GOOD)}
    files |= {"truncated.jpg": jpeg(9)[:900], "empty.jpg": b"", "huge.png": huge_png(), "text.jpg": b"hello"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rows = [{"image": name, "caption": "a seven"} for name in (*files, "missing.jpg")]
    rows += [{"image": "good0.jpg", "caption": None}, {"image": None, "caption": "a seven"}]
    rows += [{"image": "good0.jpg", "caption": "seven " * 100}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=[False, True], ids=["indexed", "streaming"])
def plan(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows(tmp_path)
    options = {"path": str(tmp_path / "rows.jsonl"), "columns": {"image": "{image}", "answer": "{caption}"}}
    drawn = {**options, "columns": {"prompt": "{caption}", "image": "{image}"}}
    data = {
        "shown": {"use": "hf-dataset", "task": "understanding", "options": options},
        "drawn": {"use": "hf-dataset", "task": "generation", "options": drawn},
    }
    for entry in data.values():
        entry["options"] = {**entry["options"], "streaming": request.param}  # type: ignore[dict-item]
    stage = {
        "name": "s",
        "learn": {"generation.image.head": 1e-3},
        "mix": {"understanding": 1, "generation": 1},
        "steps": 4,
        "batch": 14,
        "max_length": 64,
    }
    run = write_tiny(tmp_path)
    return resolve(
        load_run(run, [f"data={json.dumps(data)}", f"stages={json.dumps([stage])}", "evaluation={}"])
    )


def tokenizer(plan: RunPlan) -> TextTokenizer:
    block = plan.run.model.language_model.tokenizer
    return build_tokenizer(block, special_tokens(plan.run.model), run_texts(plan))


def steps(plan: RunPlan, workers: int = 0, state: dict[str, object] | None = None) -> list[StepBatch]:
    engine = plan.run.engine.model_copy(update={"workers": workers})
    working = replace(plan, run=plan.run.model_copy(update={"engine": engine}))
    return list(StepLoader(working, tokenizer(plan), plan.run.stages[0], state=state))


def test_bad_files_are_named_and_good_ones_batched(plan: RunPlan) -> None:
    found = steps(plan)
    for name in ("shown", "drawn"):  # 28 draws each: two epochs of 14 rows
        reasons = sorted(record.reason for step in found for record in step.bad if record.source == name)
        assert len(reasons) == 16
        for word in ("truncated.jpg", "empty.jpg", "huge.png", "text.jpg", "missing.jpg"):
            assert sum(word in reason for reason in reasons) == 2
        assert reasons.count("column 'caption' is empty") == 2
        assert reasons.count("column 'image' is empty") == 2
        assert sum("more than max_length 64" in reason for reason in reasons) == 2
    samples = [batch.num_samples for step in found for batch in step.micro]
    assert sum(count.get("understanding", 0) for count in samples) == 2 * GOOD
    assert sum(count.get("generation", 0) for count in samples) == 2 * GOOD


def test_workers_quarantine_the_same(plan: RunPlan) -> None:
    alone, shared = steps(plan), steps(plan, workers=2)
    assert [step.bad for step in alone] == [step.bad for step in shared]
    assert [step.state for step in alone] == [step.state for step in shared]
    rest = steps(plan, workers=1, state=json.loads(json.dumps(shared[1].state)))
    assert [step.bad for step in rest] == [step.bad for step in alone[2:]]
    for one, other in zip(rest, alone[2:], strict=True):
        assert one.micro[0].ids.tolist() == other.micro[0].ids.tolist()
        for path in ("understanding", "generation"):
            pixels = [getattr(step.micro[0], path)["image"].items for step in (one, other)]
            assert all(pixels[0][name].equal(pixels[1][name]) for name in pixels[1])
