"""The step as one graph against its eager twin: the same codes and words, kept from call to call."""

from __future__ import annotations

import functools
import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.native.products import Products
from janus_plugins.inference import decode, graph, linears
from janus_plugins.inference.decode import ItemPrompt, generate_items
from janus_plugins.inference.linears import FEW_BITS
from janus_plugins.inference.sampling import SeededDraws
from janus_plugins.inference.session import ask, generate
from tests.components import plain_kernels

from .test_integration import RUN, WIDE, small_model
from .toys import PlacedCodeAdapter, toy_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(autouse=True)
def _quick(monkeypatch, request):
    if "inductor" not in request.fixturenames:
        monkeypatch.setattr(graph, "BACKEND", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def inductor():
    """Compile for real."""


def codes(model, *prompts, **options):
    return generate(model, list(prompts), return_codes=True, num_per_prompt=2, seed=3, **options)


def steps_of(model):
    return [step for kept in graph._KEPT[model].values() for step in kept.steps.values()]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_items_equal_those_of_the_eager_loop(model, guidance, temperature):
    settings = {"guidance": guidance, "temperature": temperature}
    expected = codes(model, "a seven", "one", **settings)
    assert torch.equal(codes(model, "a seven", "one", compile=True, **settings), expected)


def test_a_step_is_kept_for_the_next_call_and_made_anew_for_other_weights(model, monkeypatch):
    made = []
    whole = graph.GraphStep._compile
    monkeypatch.setattr(graph.GraphStep, "_compile", lambda self: made.append(1) or whole(self))
    first = codes(model, "a two", guidance=3.0, compile=True)
    assert torch.equal(codes(model, "a two", guidance=3.0, compile=True), first)
    other = codes(model, "a six", guidance=3.0, compile=True)
    assert torch.equal(other, codes(model, "a six", guidance=3.0))
    assert len(made) == 1
    with torch.no_grad():
        for parameter in model.generation["image"].head.parameters():
            parameter.mul_(-1)
    assert torch.equal(codes(model, "a two", guidance=3.0, compile=True), codes(model, "a two", guidance=3.0))
    assert len(made) == 2
    for parameter in model.generation["image"].head.parameters():
        parameter.data.mul_(-1)  # torch does not count these writes, nor those of its fused optimisers
    assert torch.equal(codes(model, "a two", guidance=3.0, compile=True), first)
    assert len(made) == 3


def other_weights(model):
    with torch.no_grad():
        for parameter in model.generation["image"].head.parameters():
            parameter.mul_(-1)


def _hooked(layer):
    layer.mlp.register_forward_hook(lambda module, given, made: made * -3)


def _patched(layer):
    inner = layer.mlp.forward
    layer.mlp.forward = lambda source: inner(source) * -3


def _exchanged(layer):
    layer.mlp.act_fn = torch.nn.Tanh()


@pytest.mark.parametrize(
    ("change", "way"),
    [(_hooked, "plain"), (_patched, "int8"), pytest.param(_exchanged, "plain", marks=pytest.mark.slow)],
)
def test_what_hangs_on_a_module_is_minded_by_a_kept_step(change, way):
    model = small_model(WIDE)

    def made(compile=True):
        words = ask(model, "which?", compile=compile, max_new_tokens=6, linears=way)
        return codes(model, "a seven", temperature=0, compile=compile, linears=way).tolist(), words

    before = made()
    kept = [id(step) for step in steps_of(model)]
    assert made() == before
    assert [id(step) for step in steps_of(model)] == kept
    for layer in model.language_model.model.layers:
        change(layer)
    assert made() == made(compile=False) != before


def test_what_was_compiled_for_other_weights_is_forgotten(monkeypatch):
    graphs = []
    monkeypatch.setattr(graph, "BACKEND", lambda made, _: graphs.append(weakref.ref(made)) or made)
    model = small_model()
    for _ in range(3):
        codes(model, "a two", compile=True)
        other_weights(model)
    for _ in range(2):  # what is forgotten is held in circles, too
        gc.collect()
    assert [one() is None for one in graphs] == [True, True, False]


def test_steps_that_were_not_used_for_longest_give_their_memory_back(model, monkeypatch):
    monkeypatch.setattr(graph, "STEPS", 2)

    def made(temperature):
        known = set(map(id, steps_of(model)))
        codes(model, "a seven", compile=True, temperature=temperature)
        return next((weakref.ref(step.state) for step in steps_of(model) if id(step) not in known), None)

    first, second = made(0.25), made(0.5)
    assert made(0.25) is None  # it was kept, and is the latest now
    third = made(0.75)
    gc.collect()
    assert [one() is None for one in (first, second, third)] == [False, True, False]


def test_a_model_does_not_keep_the_guards_of_steps_that_are_forgotten(model, monkeypatch):
    monkeypatch.setattr(graph, "STEPS", 1)
    guards = []
    for temperature in (0.25, 0.5, 0.75):
        codes(model, "a seven", compile=True, temperature=temperature)
        gc.collect()
        guards.append(sum(type(one).__name__ == "CheckFunctionManager" for one in gc.get_objects()))
    assert guards[0] == guards[1] == guards[2] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_words_equal_those_of_the_eager_loop(model, temperature):
    questions = ["Put in order: seven two nine", "two one"]
    settings = {"temperature": temperature, "max_new_tokens": 20}
    assert ask(model, questions, compile=True, **settings) == ask(model, questions, **settings)


def test_one_graph_serves_every_length(model, monkeypatch):
    """With fewer slots at a time a short prompt is enough: its codes look back over 8, 16, 24 ... slots."""
    monkeypatch.setattr(graph, "GRAIN", 8)
    expected = codes(model, "a seven", guidance=2.0)
    for _ in range(2):
        assert torch.equal(codes(model, "a seven", guidance=2.0, compile=True), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    (kept,) = [step for step in steps_of(model) if step.compiled and len(step.recorded) > 1]
    assert len(kept.recorded) >= 3


def test_one_graph_serves_every_length_of_a_device(model, monkeypatch):
    """A device looks back over fewer lengths, each recorded by itself; Dynamo would give up after eight graphs."""
    monkeypatch.setattr(graph, "GRAIN", 4)
    monkeypatch.setattr(graph, "REACH", 4)
    monkeypatch.setattr(graph.GraphStep, "__post_init__", lambda self: setattr(self, "on_cpu", False))
    long = small_model(RUN.replace("image_size: 8", "image_size: 16"))
    expected = codes(long, "a seven", guidance=2.0)
    assert torch.equal(codes(long, "a seven", guidance=2.0, compile=True), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    (kept,) = steps_of(long)
    assert len(kept.recorded) > torch._dynamo.config.recompile_limit


@pytest.mark.parametrize("way", FEW_BITS)
def test_weights_of_few_bits_are_compiled_as_they_are_kept(monkeypatch, way):
    # The library's own products, which compiled steps take, too: sums in another order may round otherwise.
    monkeypatch.setattr(Products, "of", classmethod(lambda cls, weights: None))
    wide = small_model(WIDE)
    settings = {"guidance": 2.0, "temperature": 0.0, "linears": way}
    expected = codes(wide, "a seven", **settings)
    others = ("a seven", "one two", "nine")
    rounded, whole = (codes(wide, *others, **{**settings, "linears": each}) for each in (way, "packed"))
    assert not torch.equal(rounded, whole)
    for _ in range(2):
        assert torch.equal(codes(wide, "a seven", compile=True, **settings), expected)
        for step in steps_of(wide):
            step.recorded.clear()  # as for a length that was not there: guards are asked again
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    said = [wide.ask("two one", max_new_tokens=9, linears=way, compile=each) for each in (False, True)]
    assert said[0] == said[1]


def test_what_heads_multiply_by_is_compiled_once(monkeypatch):
    """On a GPU by kernels; a length that was not there asks guards again."""
    monkeypatch.setattr(decode, "when_compiled", lambda *_: "kernels")
    monkeypatch.setattr(linears._ByKernel, "fits", lambda weight: True)
    monkeypatch.setattr(linears, "_SMALLEST", 1)
    monkeypatch.setattr(linears.on_gpu, "kernels", lambda: plain_kernels)
    wide = small_model(WIDE)
    expected = codes(wide, "a seven", temperature=0.0)
    for _ in range(3):
        assert torch.equal(codes(wide, "a seven", temperature=0.0, compile=True), expected)
        for step in steps_of(wide):
            step.recorded.clear()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    layers = [weakref.ref(layer) for layer in wide.generation["image"].head.modules()]
    known = len(linears._BY_KERNEL)
    del wide, step
    gc.collect()
    assert len(linears._BY_KERNEL) < known
    assert not any(layer() for layer in layers)


def test_what_dynamo_was_made_to_forget_is_compiled_again(model):
    expected = codes(model, "a nine", guidance=2.0)
    for _ in range(2):
        assert torch.equal(codes(model, "a nine", guidance=2.0, compile=True), expected)
        torch.compiler.reset()


def test_models_take_turns(model):
    """Their steps have the same code; each has its own weights and cache."""
    other = small_model()
    with torch.no_grad():
        for parameter in other.language_model.parameters():
            parameter.neg_()
    settings = {"guidance": 3.0}
    expected = [codes(each, "a two", **settings) for each in (model, other)]
    assert not torch.equal(*expected)
    for _ in range(3):
        for each, wanted in zip((model, other), expected, strict=True):
            assert torch.equal(codes(each, "a two", compile=True, **settings), wanted)


def test_numbers_drawn_ahead_are_those_drawn_one_by_one():
    ahead = SeededDraws([5, 6]).ahead(3, 2, 4)
    one, other = SeededDraws([5, 6]), SeededDraws([5, 6])
    for turn in range(3):
        stepped = graph.SteppedDraws(*ahead, torch.tensor([turn]))
        assert torch.equal(stepped.uniform(), one.uniform())
        assert torch.equal(stepped.uniform(), one.uniform())
        assert torch.equal(stepped.normal(2, 2), other.normal(2, 2))


def test_what_cannot_be_one_graph_is_refused():
    one = ItemPrompt([1, 2, 3], [1, 2, 3], [0])
    with pytest.raises(RunFileError, match="static_steps"):
        generate_items(toy_model(), "image", [one], compile=True)
    placed = toy_model(adapter=PlacedCodeAdapter)
    placed.language_model.static_steps = True
    with torch.no_grad(), pytest.raises(RunFileError, match="before it"):
        generate_items(placed, "image", [one], compile=True)


@pytest.mark.slow
def test_the_compiled_step_gives_the_same_codes(model, inductor):
    expected = codes(model, "a seven", guidance=4.0, temperature=0.0)
    assert torch.equal(codes(model, "a seven", guidance=4.0, temperature=0.0, compile=True), expected)


@pytest.mark.slow
def test_weights_are_constants_of_their_own_model_alone(model, inductor, monkeypatch):
    """Laid out while compiling, they belong to one model's graph; new ones are laid out anew."""
    torch._dynamo.utils.counters.clear()
    test_models_take_turns(model)
    test_a_step_is_kept_for_the_next_call_and_made_anew_for_other_weights(small_model(), monkeypatch)


@pytest.mark.slow
def test_weights_that_were_laid_out_go_with_their_step(inductor):
    from torch._inductor.codecache import PyCodeCache

    def laid_out():
        for _ in range(2):
            gc.collect()
        values = [value for one in PyCodeCache.modules for value in vars(one).values()]
        return sum(isinstance(value, torch.Tensor) for value in values)

    def laid_out_after(model):
        codes(model, "a two", compile=True)
        return laid_out() - before

    before, model = laid_out(), small_model()
    first = laid_out_after(model)
    other_weights(model)
    assert laid_out_after(model) == first > 0


@pytest.mark.slow
def test_products_are_generated_code_with_packed_weights(model, inductor):
    from torch._inductor import metrics

    metrics.reset()
    torch._dynamo.utils.counters.clear()
    codes(model, "a seven", guidance=4.0, temperature=0.0, compile=True)
    found = torch._dynamo.utils.counters["inductor"]
    assert found["cpp_templated_kernel_counter"] > 0
    assert found["extern_calls"] == 0


def test_what_was_recorded_keeps_what_it_reads(monkeypatch):
    """A CUDA graph reads memory; that of what only the recorded call held would be given to others."""

    class Graph:
        def replay(self):
            return None

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda _: None))
    for name in ("stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    state = SimpleNamespace(slot=SimpleNamespace(device=torch.device("cuda")), tensors=list)
    slots = torch.arange(4)
    known = weakref.ref(slots)
    replay = graph.record(functools.partial(lambda state, slots: None, slots=slots), state)
    del slots
    replay()
    assert known() is not None
    del replay
    assert known() is None


@pytest.mark.gpu
@pytest.mark.parametrize("run", [RUN, WIDE])
def test_recorded_graphs_give_the_same_codes(run, inductor):
    """Kernels of our own serve the wide heads alone."""
    model = small_model(run).to("cuda")
    settings = {"guidance": 4.0, "temperature": 0.0}
    expected = codes(model, "a seven", **settings)
    for _ in range(2):
        assert torch.equal(codes(model, "a seven", compile=True, **settings), expected)
