"""Frozen encoders' answers on the disk: the same codes, the same losses, and never another encoder's."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from janus_plugins.cli import app
from janus_plugins.core.errors import CheckpointError, DataError, PluginError, RunFileError
from janus_plugins.core.plan import RunPlan
from janus_plugins.core.runfile import load_run
from janus_plugins.core.wiring import resolve
from janus_plugins.data import precomputed
from janus_plugins.data.loader import StepLoader
from janus_plugins.model.compose import build_tokenizer_for, compose_plan
from janus_plugins.sequence.assemble import PRECOMPUTED
from janus_plugins.training import precompute as module
from janus_plugins.training.answers import check_precomputed
from janus_plugins.training.parts import Rows, put, write_part
from janus_plugins.training.precompute import precompute
from janus_plugins.training.run import train
from janus_plugins.training.world import World

from ..tiny import write_tiny
from .runs import losses
from .test_guard import HOLD

ADAPTERS = 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plan(tiny: Path) -> RunPlan:
    return resolve(load_run(tiny))


@pytest.fixture(scope="module")
def folder(plan: RunPlan, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("precomputed")
    done = precompute(plan, out, world)
    assert [one.folder.name for one in done] == ["read", "draw"]
    assert all(one.items > 100 and not one.bad for one in done)
    return out


def using(tiny: Path, folder: Path, *entries: str, more: tuple[str, ...] = ()) -> RunPlan:
    entries = entries or ("read", "draw")
    return resolve(load_run(tiny, [*(f"data.{name}.precomputed={folder}" for name in entries), *more]))


def first_batch(plan: RunPlan, stage: int) -> Any:
    tokenizer = build_tokenizer_for(plan)
    return next(iter(StepLoader(plan, tokenizer, plan.run.stages[stage]))).micro[0]  # type: ignore[arg-type]


def test_batches_carry_the_very_codes_and_features(plan: RunPlan, tiny: Path, folder: Path) -> None:
    raw, made = first_batch(plan, ADAPTERS), first_batch(using(tiny, folder), ADAPTERS)
    model = compose_plan(plan).eval()
    scale = dict.fromkeys(raw.targets(), 1.0)
    with torch.no_grad():
        codes = model.generation["image"].encoder.encode(raw.generation["image"].items)
        features = model.understanding["image"].encoder(raw.understanding["image"].items)
        assert set(made.generation["image"].items) == {PRECOMPUTED}
        assert torch.equal(made.generation["image"].items[PRECOMPUTED], codes)
        torch.testing.assert_close(
            made.understanding["image"].items[PRECOMPUTED], features, rtol=1e-5, atol=1e-6
        )
        assert len(codes.unique()) > 1
        one, other = model(raw, scale), model(made, scale)
    for label, value in one.sums.items():
        assert float(other.sums[label]) == pytest.approx(float(value), rel=1e-6)


def test_data_workers_read_the_same_answers(tiny: Path, folder: Path) -> None:
    here = first_batch(using(tiny, folder), ADAPTERS)
    there = first_batch(using(tiny, folder, more=("engine.workers=1",)), ADAPTERS)
    for one, other in ((here.generation, there.generation), (here.understanding, there.understanding)):
        assert torch.equal(one["image"].items[PRECOMPUTED], other["image"].items[PRECOMPUTED])


def test_an_encoder_that_learns_is_run(tiny: Path, folder: Path) -> None:
    batch = first_batch(using(tiny, folder), 2)  # learns `understanding`, and freezes the codes' encoder
    assert set(batch.generation["image"].items) == {PRECOMPUTED}
    assert "pixels" in batch.understanding["image"].items
    batch = first_batch(using(tiny, folder), 0)  # reconstructs pixels
    assert "pixels" in batch.generation["image"].items


def test_an_absent_path_is_blank_and_still_adds_nothing(tiny: Path, folder: Path) -> None:
    plan = using(tiny, folder)
    stage, tokenizer = plan.run.stages[ADAPTERS], build_tokenizer_for(plan)
    shares = [StepLoader(plan, tokenizer, stage, rank=rank, world=4) for rank in range(4)]  # type: ignore[arg-type]
    batches = [next(iter(share)).micro[0] for share in shares]
    batch = next(batch for batch in batches if batch.generation["image"].absent)
    items = batch.generation["image"]
    assert items.absent
    assert set(items.items) == {PRECOMPUTED}
    losses = compose_plan(plan)(batch, dict.fromkeys(batch.targets(), 1.0))
    assert torch.isfinite(losses.loss)
    assert "generation.image" not in losses.sums


def test_training_with_answers_takes_the_same_steps(tiny: Path, world: World, tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO())
    plain = resolve(load_run(tiny))
    train(plain, tmp_path / "plain", only_stage="tokenizer", console=quiet)
    train(plain, tmp_path / "with", only_stage="tokenizer", console=quiet)
    train(plain, tmp_path / "plain", only_stage="adapters", console=quiet)
    answers = tmp_path / "answers"
    precompute(plain, answers, world, model=tmp_path / "with", names=["draw"], paths=["generation.image"])
    train(using(tiny, answers, "draw"), tmp_path / "with", only_stage="adapters", console=quiet)
    one, other = losses(tmp_path / "plain"), losses(tmp_path / "with")
    assert len(one) == len(other) == 4
    for (_, first, norm), (_, second, other_norm) in zip(one, other, strict=True):
        assert second == pytest.approx(first, rel=1e-6)
        assert other_norm == pytest.approx(norm, rel=1e-5)


SOUND = """
name: sound
model:
  language_model:
    use: llama
    options: {vocab_size: 48, hidden_size: 32, intermediate_size: 64, num_layers: 1, num_heads: 2, max_positions: 64}
    tokenizer: {type: trained, level: word, vocab_size: 48}
    template: plain
  generation:
    audio:
      encoder: {use: rvq, options: {seconds: 0.4, rate: 8000, num_codebooks: 2, codebook_size: 16}}
      adapter: {use: code-sum}
      head: {use: depth, options: {width: 16, layers: 1, num_heads: 2}}
data:
  play: {use: tones, task: generation, options: {size: 72}}
stages:
  - name: one
    learn: {generation.audio.adapter: 3e-3, generation.audio.head: 3e-3}
    mix: {generation: 1}
    steps: 2
    batch: 8
    max_length: 64
engine: {precision: bf16}
"""


def test_in_bf16_a_codebook_that_is_a_buffer_is_as_in_training(tmp_path: Path, world: World) -> None:
    """DeepSpeed rounds parameters alone."""
    quiet = Console(file=io.StringIO())
    (tmp_path / "run.yaml").write_text(SOUND)
    plan = resolve(load_run(tmp_path / "run.yaml"))
    precompute(plan, tmp_path / "answers", world)
    using = resolve(load_run(tmp_path / "run.yaml", [f"data.play.precomputed={tmp_path / 'answers'}"]))
    train(plan, tmp_path / "plain", console=quiet)
    train(using, tmp_path / "with", console=quiet)
    one, other = losses(tmp_path / "plain"), losses(tmp_path / "with")
    assert len(one) == len(other) == 2
    assert one == other


def test_stale_answers_are_refused(tiny: Path, folder: Path) -> None:
    plan = using(tiny, folder)
    model, stage = compose_plan(plan), plan.run.stages[ADAPTERS]
    check_precomputed(plan, model, stage)
    with torch.no_grad():
        next(model.generation["image"].encoder.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(DataError, match=r"is stale: generation.image.encoder .* precompute RUN.yaml --model"):
        check_precomputed(plan, model, stage)
    engine = plan.run.engine.model_copy(update={"precision": "bf16"})
    lower = dataclasses.replace(plan, run=plan.run.model_copy(update={"engine": engine}))
    with pytest.raises(DataError, match="is stale"):
        check_precomputed(lower, compose_plan(plan), stage)
    other = using(tiny, folder, more=("data.draw.options.size=12",))
    with pytest.raises(DataError, match=r"another source than data.draw is now"):
        first_batch(other, ADAPTERS)


def test_a_broken_off_run_goes_on_and_is_not_read_before(
    plan: RunPlan, tiny: Path, folder: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = module.write_part
    left = iter(range(2))

    def breaking(target: Path, rows: Any) -> None:
        if next(left, None) is None:
            raise OSError("no space left on device")
        written(target, rows)

    monkeypatch.setattr(module, "write_part", breaking)
    options: Any = {"names": ["draw"], "paths": ["generation.image"]}
    with pytest.raises(OSError, match="no space"):
        precompute(plan, tmp_path, world, **options)
    with pytest.raises(DataError, match="is not complete"):
        first_batch(using(tiny, tmp_path, "draw"), ADAPTERS)
    monkeypatch.setattr(module, "write_part", written)
    (again,) = precompute(plan, tmp_path, world, **options)
    parts = sorted((tmp_path / "draw" / "generation.image").glob("*.parquet"))
    assert again.items < len(parts) * module.PART_SAMPLES - 2 * module.PART_SAMPLES + 1
    assert [part.name for part in parts] == [
        part.name for part in sorted((folder / "draw" / "generation.image").glob("*.parquet"))
    ]
    for part in parts:
        assert part.read_bytes() == (folder / "draw" / "generation.image" / part.name).read_bytes()
    (third,) = precompute(plan, tmp_path, world, **options)
    assert third.items == 0


def test_a_second_run_on_the_same_entry_is_refused(plan: RunPlan, world: World, tmp_path: Path) -> None:
    """And one on another entry of the same folder is not."""
    options: Any = {"paths": ["generation.image"]}
    hold = [sys.executable, "-c", HOLD, str(tmp_path / "draw")]
    with subprocess.Popen(hold, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = rf"{tmp_path / 'draw'} is in use by process {holder.pid} on .* choose another folder"
        with pytest.raises(RunFileError, match=message):
            precompute(plan, tmp_path, world, **options)
        precompute(plan, tmp_path, world, names=["read"], paths=["understanding.image"])
        holder.kill()
    assert [path.name for path in (tmp_path / "draw").iterdir()] == [".lock"]
    precompute(plan, tmp_path, world, **options)


def test_ranks_share_the_parts_and_write_the_same(
    plan: RunPlan, folder: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    monkeypatch.setattr(World, "from_main", lambda self, work: work())
    for rank in (1, 0):
        share = World(rank, 2, world.device)
        precompute(plan, tmp_path, share, names=["draw"], paths=["generation.image"])
        number = len(list((tmp_path / "draw" / "generation.image").glob("*.parquet")))
        whole = sorted((folder / "draw" / "generation.image").glob("*.parquet"))
        assert number == (len(whole) // 2 if rank else len(whole))
    for part in whole:
        assert part.read_bytes() == (tmp_path / "draw" / "generation.image" / part.name).read_bytes()


def test_half_precomputed_paths_are_refused(tiny: Path, folder: Path) -> None:
    text = "data.more={use: digits, task: generation, options: {ask: generation, size: 8}}"
    plan = using(tiny, folder, more=(text,))
    with pytest.raises(RunFileError, match=r"from data.more, which has nothing precomputed .* data.draw"):
        first_batch(plan, ADAPTERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["draw_test"]}, "no train entry is called 'draw_test'"),
        (
            {"paths": ["generation.audio"]},
            "'generation.audio' cannot be precomputed; these can: .*generation.image",
        ),
    ],
)
def test_what_cannot_be_precomputed_is_named(
    plan: RunPlan, world: World, tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(RunFileError, match=message):
        precompute(plan, tmp_path, world, **options)


@pytest.mark.parametrize("paths", [[], ["generation.image"]])
def test_a_run_without_a_path_that_can_be_precomputed_says_what_makes_one(
    plan: RunPlan, world: World, tmp_path: Path, paths: list[str]
) -> None:
    codes = dataclasses.replace(plan, run=plan.run.model_copy(update={"stages": plan.run.stages[:1]}))
    assert codes.run.stages[0].reconstruct == "image"
    message = r"no path of this run can be precomputed \(frozen in some stage, a fixed number of tokens"
    with pytest.raises(RunFileError, match=message):
        precompute(codes, tmp_path, world, paths=paths)


def test_another_encoder_does_not_write_into_the_same_folder(
    plan: RunPlan, folder: Path, world: World
) -> None:
    other = dataclasses.replace(plan, run=plan.run.model_copy(update={"seed": 4}))
    with pytest.raises(DataError, match="choose another --out"):
        precompute(other, folder, world, names=["draw"])


def test_the_command_says_what_it_wrote(tiny: Path, world: World, tmp_path: Path) -> None:
    words = ["precompute", str(tiny), "--out", str(tmp_path), "--data", "draw", "--path", "generation.image"]
    result = CliRunner().invoke(app, [*words, "--batch", "64"])
    assert result.exit_code == 0, result.output
    assert re.search(rf"{tmp_path}/draw: [1-9]\d* items written, 0 samples could not be read", result.output)
    assert set(first_batch(using(tiny, tmp_path, "draw"), ADAPTERS).generation["image"].items) == {
        PRECOMPUTED
    }


def test_a_sample_that_moved_or_was_unreadable_is_noticed(folder: Path) -> None:
    key = json.loads((folder / "draw" / "key.json").read_text(encoding="utf-8"))
    store = precomputed.Store(str(folder / "draw" / "generation.image"), key["chunk"], key["size"], "")
    with pytest.raises(DataError, match=r"was made when sample 0 was .*; it is 'elsewhere\[0\]' now"):
        store.get(0, 0, "elsewhere[0]", None)
    with pytest.raises(precomputed.BadSample, match="item 7 could not be read"):
        store.get(0, 7, "draw[0]", None)


def written(folder: Path, values: np.ndarray) -> precomputed.Store:
    """Write one part of the items' answers and return what reads it."""
    rows: Any = Rows(None, 1)  # type: ignore[arg-type]
    for number, one in enumerate(values):
        rows.names.append((number, 0, f"draw[{number}]", precomputed.item_digest(number)))
        rows.values.append(one)
    write_part(precomputed.part_file(folder, 0), rows)
    whole = values.dtype == np.int32
    return precomputed.Store(str(folder), len(values), len(values), "", 1024 if whole else None)


def answers(store: precomputed.Store) -> np.ndarray:
    precomputed._open_part.cache_clear()
    return np.stack([store.get(number, 0, f"draw[{number}]", number) for number in range(store.size)])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_flipped_bits_are_never_read_as_other_answers(dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1024, (12, 16, 4)).astype(dtype)
    store, file = written(tmp_path, values), precomputed.part_file(tmp_path, 0)
    assert np.array_equal(answers(store), values)
    good, refused = file.read_bytes(), 0
    pages = len(good) - 8 - int.from_bytes(good[-8:-4], "little")  # what is not the file's own description
    for place in rng.integers(4, pages, 200):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            assert np.array_equal(answers(store), values)
        except DataError as error:
            assert f"{file} cannot be read" in str(error)  # noqa: PT017
            assert "run `janus-plugins precompute` again" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 180
    for cut in (0, 3, 50, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:cut])
        with pytest.raises(DataError, match="cannot be read"):
            answers(store)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        answers(store)


def test_codes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    store = written(tmp_path, np.array([[1023, 0], [1024, 0], [-1, 0]], np.int32))
    assert store.get(0, 0, "draw[0]", 0).tolist() == [1023, 0]
    for number in (1, 2):
        with pytest.raises(DataError, match=r"part-000000.* holds others than the codes 0 to 1023"):
            store.get(number, 0, f"draw[{number}]", number)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (
            "generation",
            lambda made: made + 16,
            "its codes reach from .* but codes of generation.image.encoder are 0 to 15",
        ),
        ("generation", lambda made: made[1:], r"its codes are \[3, 16\], but .* \[N=4, T=16\]"),
        ("generation", lambda made: made.float(), "its codes are torch.float32"),
        (
            "understanding",
            lambda made: torch.cat([made, made], 1),
            r"its features are \[4, 8, 16\], but .* T=4",
        ),
        ("understanding", lambda made: (made,), "its features are a tuple"),
    ],
)
def test_answers_are_held_to_the_encoders_facts(
    path: str, change: Any, message: str, plan: RunPlan, world: World, tmp_path: Path, monkeypatch: Any
) -> None:
    """Features that are twice as many would take twice the slots when they are read, without a word."""

    def build(*given: Any) -> Any:
        model = compose_plan(*given)
        encoder = model.get_submodule(f"{path}.image.encoder")
        name = "encode" if path == "generation" else "forward"
        whole = getattr(encoder, name)
        monkeypatch.setattr(encoder, name, lambda items: change(whole(items)))
        return model

    monkeypatch.setattr(module, "compose_plan", build)
    with pytest.raises(PluginError, match=rf"{path}.image.encoder: .*{message}.*janus-plugins check"):
        precompute(plan, tmp_path, world, paths=[f"{path}.image"], batch=4)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_stage_knows_which_codes_there_are(tiny: Path, folder: Path) -> None:
    plan = using(tiny, folder)
    stores = precomputed.open_stores(plan, plan.run.stages[ADAPTERS])
    assert {at[1]: store.codes for at, store in stores.items()} == {"understanding": None, "generation": 16}


def test_answers_without_checksums_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    def former(table: Any, path: Path, *, write_page_checksum: bool, **options: Any) -> None:
        assert write_page_checksum
        write_table(table, path, **options)

    write_table, values = parquet.write_table, np.arange(24, dtype=np.int32).reshape(3, 8)
    monkeypatch.setattr(parquet, "write_table", former)
    assert np.array_equal(answers(written(tmp_path, values)), values)


def test_a_full_disk_is_named_and_leaves_no_half_part(tmp_path: Path, no_file_beyond: Any) -> None:
    values = np.random.default_rng(0).standard_normal((12, 16, 4)).astype(np.float32)
    with (
        no_file_beyond(600),
        pytest.raises(CheckpointError, match=r"part-000000.*make room and run the same"),
    ):
        written(tmp_path, values)
    with no_file_beyond(2), pytest.raises(CheckpointError, match=r"key.json could not be written.*make room"):
        put(tmp_path / "key.json", "{} and more")
    assert list(tmp_path.iterdir()) == []


def test_another_item_of_the_same_name_is_noticed(world: World, tmp_path: Path) -> None:
    """Rows in another order, others in their place, and more of them: with codes of the wrong pictures."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        (tmp_path / "pix").mkdir(exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture.save(tmp_path / "pix" / f"{number}.png")
        rows.append(json.dumps({"image": f"pix/{number}.png", "caption": "seven"}))
    file = tmp_path / "rows.jsonl"
    columns = '{prompt: "{caption}", image: "{image}"}'
    over = (
        f"data.draw={{use: hf-dataset, task: generation, options: {{path: {file}, columns: {columns}}}}}",
        "stages.adapters.mix={generation: 1}",
    )
    run = write_tiny(tmp_path)
    file.write_text("\n".join(rows))
    precompute(resolve(load_run(run, over)), tmp_path / "out", world, names=["draw"])

    def take(*lines: str) -> None:
        file.write_text("\n".join(lines))
        more = (*over, f"data.draw.precomputed={tmp_path / 'out'}")
        plan = resolve(load_run(run, more))
        steps = list(StepLoader(plan, build_tokenizer_for(plan), plan.run.stages[ADAPTERS]))
        assert steps
        assert not any(step.bad for step in steps)

    take(*rows)
    with pytest.raises(DataError, match=r"when item 0 of sample '.*rows.jsonl\[\d+\]' was another one"):
        take(*reversed(rows))
    with pytest.raises(DataError, match=r"was made of 12 samples; '.*rows.jsonl\[\d+\]' is one more"):
        take(*rows, *rows)


def coloured(*colour: int) -> Image.Image:
    """Make a picture of one colour that its palette holds."""
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, *colour])
    return picture


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.png", "b.png"),
        (b"one", b"two"),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros((2, 3)), np.zeros((2, 3), np.float32)),
        (Image.new("L", (2, 2)), Image.new("L", (2, 2), 1)),
        (coloured(255, 0, 0), coloured(0, 0, 255)),
        (coloured(1, 1, 1), Image.new("L", (2, 2), 1)),
        ([1, 2], [1, 3]),
        (["12"], ["1", "2"]),
        ({"bytes": b"a", "path": None}, {"bytes": b"b", "path": None}),
        ({"path": "a.png"}, {"path": "b.png"}),
        ({"map": np.zeros(2), "rate": 1.0}, {"map": np.zeros(2), "rate": 2.0}),
    ],
)
def test_digests_tell_items_apart(one: object, other: object) -> None:
    made = precomputed.item_digest(one)
    assert made
    assert made == precomputed.item_digest(copy.deepcopy(one))
    assert made != precomputed.item_digest(other)


def test_a_file_in_memory_is_its_bytes_wherever_it_lay() -> None:
    digests = {precomputed.item_digest({"bytes": b"a", "path": path}) for path in ("here", "there", None)}
    assert digests == {precomputed.item_digest(b"a")}
    assert precomputed.item_digest(object()) == precomputed.item_digest([object()]) == ""
