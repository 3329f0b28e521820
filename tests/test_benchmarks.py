"""The benchmarks' own arithmetic: ratios, refusal, and that both sides do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import growth, harness, plugins
from benchmarks.training import padded, usual_loss
from janus_plugins.data.loader import StepLoader
from janus_plugins.door import plan as read_plan
from janus_plugins.model.compose import build_tokenizer_for, compose_plan

from .tiny import write_tiny


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_ways_take_turns_and_ratios_are_of_ours():
    order = []
    ways = {
        "ours": lambda: (order.append("a"), burn(0.01)),
        "theirs": lambda: (order.append("b"), burn(0.03)),
    }
    made = harness.compare("work", ways, rounds=3)
    assert "".join(order) == "ab" * 4
    assert len(made.cpu["ours"]) == 3
    assert all(2 < ratio < 4 for ratio in made.ratios("theirs"))
    assert "| theirs |" in harness.markdown(made)


def test_figures_of_a_machine_that_was_not_ours_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    made = harness.Comparison("work", "ours", {"ours": [1.0]}, {"ours": [1.0]}, stolen=0.2)
    assert harness.report("work", [made]) == 1
    assert "20% of the machine's time was stolen" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert harness.report("work", [made], force=True) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"work.json", "work.md"}


def test_padded_rows_have_the_same_loss_as_packed_ones(tmp_path):
    plan = read_plan(write_tiny(tmp_path))
    tokenizer = build_tokenizer_for(plan)
    model = compose_plan(plan, tokenizer)
    stage = next(stage for stage in plan.run.stages if stage.name == "finetune")
    batch = next(iter(StepLoader(plan, tokenizer, stage))).micro[0]
    rows = padded(batch)
    assert rows.ids.shape[0] == sum(batch.num_samples.values()) > batch.ids.shape[0]
    ours, usual = model(batch, dict.fromkeys(batch.targets(), 1.0)).loss, usual_loss(model, rows)
    assert usual.item() == pytest.approx(ours.item(), rel=1e-5)
    assert torch.isfinite(ours)


def test_growth_with_the_size_of_a_data_set_is_measured(tmp_path):
    curve = growth.data(True, tmp_path)
    assert curve.sizes == (1_000, 10_000)
    assert all(seconds > 0 for seconds in curve.seconds)


def test_listing_plugins_finds_every_one_and_costs_little_for_each(tmp_path):
    few, many = plugins.install(tmp_path / "few", 1), plugins.install(tmp_path / "many", 101)
    for site in (few, many):
        plugins.listing(site)  # writes byte code
    spent = {site: min(plugins.listing(site)[1] for _ in range(2)) for site in (few, many)}
    assert "listed-100" in plugins.listing(many)[2]
    # CPU time; 300 within a second leave 3 ms for each, and this machine may be twice as slow as it is alone.
    assert (spent[many] - spent[few]) / 100 < 0.006


def test_a_search_keeps_every_change_that_gains(monkeypatch, capsys):
    layers = pytest.importorskip("benchmarks.layers")  # needs Triton
    best, look, tries = layers.Shape(16, 512, 4, 3), layers.Look(False, 32, 1, 4, 4), []

    def gains(way):
        # Carried norms gain only once something is brought near, which is tried after them.
        near = way.ahead.gate_up == 8 << 20
        return (way.shapes[1] == best) + (way.look == look) + near + (near and way.carried)

    def tried(of, old, new):
        tries.append(new)
        return gains(new) > gains(old), 5.0 - gains(old), 5.0 - gains(new)

    monkeypatch.setattr(layers, "tried", tried)
    cut = layers.Shape(64, 64, 4, 5)
    near, now = layers.on_gpu.AHEAD_OF_MANY, layers.Look(False, 32, 1, 4, 3)
    now = layers.Way((cut,) * 4, near, now, layers.LATE, carried=False)
    asked = SimpleNamespace(rows=32, sizes=(2048, 5632), work=lambda way: way)
    found = layers.searched(asked, now, time.perf_counter() + 100)
    near = near._replace(gate_up=8 << 20)
    assert found == layers.Way((cut, best, cut, cut), near, look, layers.LATE, carried=True)
    assert layers.AT_ONCE in {way.early for way in tries}
    assert layers.searched(asked, now, 0.0) == now
    assert f"out {tuple(best)}" in str(found)


def test_what_a_search_found_is_tried_in_a_model(tmp_path):
    layers = pytest.importorskip("benchmarks.layers")  # needs Triton
    kernels, cut = layers.on_gpu.kernels(), layers.Shape(2, 512, 4, parts=3)
    few = layers.Way((None, cut, None, None), None, layers.Look(True, 32, 4, 2), layers.LATE)
    many = layers.Way((cut, None, cut, None), layers.on_gpu.Ahead(1, 2, 3, 4, 5), None, None, carried=True)
    rows = {"2": {"the best found": few.told(), "as they are": {}}, "32": {"the best found": many.told()}}
    file = tmp_path / "layers.json"
    file.write_text(json.dumps({"sizes": [64, 176], "rows": rows}))

    def asked() -> list[object]:
        looks = [kernels._look_way(rows, 16, 16, 128, 2) for rows in (2, 32)]
        shapes = [kernels._shape(rows, 192, 64, False, 2) for rows in (2, 32)]
        carried = [layers.on_gpu.carries(rows, torch.bfloat16) for rows in (2, 32)]
        near = map(layers.on_gpu.ahead_of, (2, 32))
        return [*looks, *shapes, kernels._shape(2, 64, 64, False, 2), *near, *carried]

    plain = asked()
    with layers.best_found(file):
        found = asked()
    wanted = {0: few.look, 3: cut, 4: cut, 6: many.ahead, 8: True}
    assert found == [wanted.get(place, one) for place, one in enumerate(plain)]
    assert asked() == plain


def test_kernels_are_told_apart_by_their_place_in_a_layer():
    layers = pytest.importorskip("benchmarks.layers")  # needs Triton
    names = ["_dots", "_look_alone", "_dots", "_norm", "_dots", "_dots"]
    runs = [*names * 3, "_norm"] * 2  # the last norm follows all layers
    ran = [(f"{name}_kernel", 10.0 * i, 10.0 * i + 4 + i % 19 % 6) for i, name in enumerate(runs)]
    told = layers.grouped(ran[::-1], 3, 2)
    assert [name for name, *_ in told] == ["qkv", "look", "out", "norm", "gate_up", "down"]
    assert [length for _, length, _ in told] == [4, 5, 6, 7, 8, 9]
    assert [after for *_, after in told] == [5, 11, 11, 11, 11, 11]
    ran = [(f"{name}_kernel", i, i + 1) for i, name in enumerate(["_norm", *["_dots"] * 15, "_norm"] * 2)]
    assert [name for name, *_ in layers.grouped(ran, 3, 2)] == ["qkv", "look", "out", "gate_up", "down"]
    with pytest.raises(ValueError, match="33 kernels"):
        layers.grouped(ran[1:], 3, 2)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (2, ["rows", "look_alone", "rows", "rows", "rows", "norm"]),
        (32, ["dots", "dots", "look", "dots", "dots", "dots", "norm"]),
    ],
)
@pytest.mark.slow
def test_kernels_of_a_layer_compile_for_a_gpu_that_is_not_there(rows, names):
    pytest.importorskip("triton")
    code = (
        "from benchmarks.registers import Way, layer; "
        f"print([one.name for one in layer({rows}, Way(carried={rows > 4}))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str([f"{name}_kernel" for name in names])


def test_the_table_of_listings():
    text = plugins.table({1: {"wall": [1.0, 3.0], "cpu": [0.5, 0.7]}})
    assert "| 1 | 2.00 | 1.00 | 0.60 | 0.50 |" in text
