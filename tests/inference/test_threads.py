"""Threads that share a model take turns; each gets what it gets alone, and the model is as before."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.inference import graph
from janus_plugins.inference.session import evaluating
from janus_plugins.model.compose import compose_plan

from .test_integration import WIDE


@pytest.fixture
def model():
    return compose_plan(resolve(load_run_text(WIDE, "wide.yaml")))


@pytest.fixture(autouse=True)
def _hurried():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_each_thread_gets_its_own_numbers(model):
    def draw(linears):
        return model.generate("a seven", num_per_prompt=3, linears=linears, return_codes=True)

    ways = ["packed", "int8", "plain", "int4"]
    alone = {way: draw(way) for way in ways}
    words = model.ask("which?", max_new_tokens=6)
    with ThreadPoolExecutor(8) as threads:
        made = [(way, threads.submit(draw, way)) for way in ways * 4]
        said = [threads.submit(model.ask, "which?", max_new_tokens=6) for _ in range(16)]
        assert all(torch.equal(one.result(), alone[way]) for way, one in made)
        assert {one.result() for one in said} == {words}
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.training


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="processes cannot be forked here")
def test_a_forked_process_waits_for_no_call_of_its_parent():
    model, entered, leave = torch.nn.Linear(1, 1), threading.Event(), threading.Event()

    def call():
        with evaluating(model):
            entered.set()
            leave.wait()

    def forked():
        with evaluating(model):
            pass

    with ThreadPoolExecutor(1) as threads:
        threads.submit(call)
        entered.wait()
        child = multiprocessing.get_context("fork").Process(target=forked)
        child.start()
        leave.set()
        child.join(20)
        child.kill()
    child.join()
    assert child.exitcode == 0


def test_threads_share_a_compiled_step(model, monkeypatch):
    monkeypatch.setattr(graph, "BACKEND", "eager")

    def draw(seed):
        return model.generate("a seven", seed=seed, compile=True, return_codes=True)

    alone = [draw(seed) for seed in range(3)]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(draw, [0, 1, 2] * 4))
    assert all(torch.equal(one, alone[index % 3]) for index, one in enumerate(made))


def test_a_listener_may_call_the_model(model):
    made = []

    def draw(piece):
        made.append(model.generate("a seven", linears="int8", return_codes=True))

    expected = model.ask("which?", max_new_tokens=6)
    alone = model.generate("a seven", linears="int8", return_codes=True)
    assert model.ask("which?", max_new_tokens=6, on_text=draw) == expected
    assert made
    assert all(torch.equal(one, alone) for one in made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_defaults_of_torch_are_no_matter(model, dtype):
    expected = model.generate("a seven", num_per_prompt=8, return_codes=True)
    torch.set_default_dtype(dtype)
    try:
        for _ in range(20):  # once, too little memory was asked for
            assert torch.equal(model.generate("a seven", num_per_prompt=8, return_codes=True), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    codes = expected[:1]
    (decoded,) = model.decode("image", codes)
    zigzag = model.generate("a seven", decoding="zigzag", return_codes=True)
    with torch.device("meta"):
        assert torch.equal(model.generate("a seven", num_per_prompt=8, return_codes=True), expected)
        assert torch.equal(model.generate("a seven", decoding="zigzag", return_codes=True), zigzag)
        assert model.decode("image", codes)[0].tobytes() == decoded.tobytes()


@pytest.mark.parametrize("linears", ["packed", "int8"])
def test_gradients_flow_where_somebody_trains_meanwhile(model, linears):
    layer = model.language_model.model.layers[0].mlp.up_proj

    def gradient(_=None):
        layer.weight.grad = None
        with torch.enable_grad():
            layer(torch.ones(2, layer.in_features)).sum().backward()
        return layer.weight.grad

    made, alone = [], gradient()
    model.ask("which?", max_new_tokens=4, on_text=lambda piece: made.append(gradient()), linears=linears)
    with ThreadPoolExecutor(1) as threads:
        model.generate("a", on_made=lambda _: made.append(threads.submit(gradient).result()), linears=linears)
    assert len(made) > 1
    assert all(torch.equal(one, alone) for one in made)
