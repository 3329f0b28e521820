"""Answers and items on a device that is not the CPU: the same, and the host waits outside the loop alone.

The device is a stand-in, `janus_plugins.testing.elsewhere`. What waits as often for 64 codes as for 16 does not
wait inside the loop over codes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from janus_plugins.core.native import on_gpu
from janus_plugins.inference import graph, linears
from janus_plugins.inference.graph import LOOK
from janus_plugins.inference.session import ask, generate
from janus_plugins.model.unified import UnifiedModel
from janus_plugins.testing.elsewhere import AWAY, elsewhere
from tests.components import plain_kernels

from .test_integration import RUN, WIDE, picture, small_model

Way = Callable[[UnifiedModel], Any]


@pytest.fixture(scope="module")
def here() -> UnifiedModel:
    return small_model()


@pytest.fixture(scope="module")
def away(here: UnifiedModel) -> UnifiedModel:
    with elsewhere():
        return copy.deepcopy(here).to(AWAY)


def items(**options: Any) -> Way:
    prompts = ["a seven", "one two"]
    return lambda model: generate(model, prompts, num_per_prompt=2, seed=3, return_codes=True, **options)


def words(*questions: str, **options: Any) -> Way:
    return lambda model: ask(model, list(questions), **{"max_new_tokens": 40, **options})


WAYS: dict[str, Way] = {
    "sampled": items(),
    "greedy": items(temperature=0.0),
    "without guidance": items(guidance=1.0),
    "few rows": items(max_rows=2),
    "jacobi": items(decoding="jacobi"),
    "zigzag": items(decoding="zigzag", window=2),
    "shown": items(images=[[picture(3)], [picture(4)]]),
    "compiled": items(compile=True),
    "words": words("two one", "three four"),
    "sampled words": words("two", temperature=1.0, top_p=0.9),
    "words of pictures": words("what?", "how?", images=[[picture(1)], [picture(1), picture(2)]]),
    "filled": words("two one", "six", "three four five", max_rows=2),
    "compiled words": words("two one", "three four", compile=True),
    "interleaved": lambda model: [str(part) for part in model.generate("draw", interleaved=True, seed=1)],
}


def counted(way: Way, model: UnifiedModel) -> tuple[Any, Counter[str]]:
    with elsewhere() as mode:
        made = way(model)
    return made, mode.waits


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is a graph elsewhere runs as it is here, in what a compiler is given: none knows the stand-in."""

    def compile(self: graph.GraphStep) -> Callable[..., None]:
        def step(*given: Any, **named: Any) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                self._step(*given, **named)

        return step

    monkeypatch.setattr(graph.GraphStep, "_compile", compile)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_made_is_the_same(name: str, here: UnifiedModel, away: UnifiedModel) -> None:
    expected, (made, _) = WAYS[name](here), counted(WAYS[name], away)
    assert torch.equal(made, expected) if isinstance(made, Tensor) else made == expected


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the stand-in what a GPU has of its own for a step, in plain torch."""
    monkeypatch.setattr(on_gpu, "has_kernels", lambda device: device.type == AWAY.type)
    monkeypatch.setattr(on_gpu, "kernels", lambda: plain_kernels)
    return plain_kernels


@pytest.mark.parametrize(
    ("name", "most"), [("compiled", 0), ("compiled", 8), ("compiled alone", 8), ("compiled words", 8)]
)
def test_a_compiled_step_by_kernels(
    name: str, most: int, plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = small_model(WIDE)
    with elsewhere():
        away = copy.deepcopy(here).to(AWAY)
    looked = []
    look = plain.look
    monkeypatch.setattr(plain, "look", lambda *given: looked.append(1) or look(*given))
    monkeypatch.setattr(on_gpu, "MOST", most)
    way = {
        **WAYS,
        "compiled alone": lambda model: generate(model, "a seven", return_codes=True, compile=True),
    }
    expected, (made, _) = way[name](here), counted(way[name], away)
    assert torch.equal(made, expected) if isinstance(made, Tensor) else made == expected
    assert looked


def test_norms_that_products_carry(plain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    here = small_model(WIDE)
    with elsewhere():
        away = copy.deepcopy(here).to(AWAY)
    ran = Counter()
    for name in ("carrying", "normed"):
        real = getattr(plain, name)
        monkeypatch.setattr(plain, name, lambda *given, real=real, name=name, **options: (
            ran.update([name]) or real(*given, **options)
        ))  # fmt: skip
    monkeypatch.setattr(on_gpu, "CARRIED", True)
    monkeypatch.setattr(on_gpu, "FEW", 0)
    monkeypatch.setattr(on_gpu, "MOST", 8)
    expected, (made, _) = WAYS["compiled"](here), counted(WAYS["compiled"], away)
    assert torch.equal(made, expected)
    layers = here.plan.model.facts.num_layers
    assert ran["carrying"] == (2 * layers - 1) * ran["normed"]  # the last norm follows all layers


def test_kernels_bring_near_what_later_ones_read(plain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Tensor | None, Tensor | None]] = []
    product, look = plain.product, plain.look

    def noted_product(source: Tensor, weight: Tensor, *, later: Tensor | None, **options: Any) -> Tensor:
        ran.append((weight.cpu().view(-1), later))
        return product(source, weight, **options)

    def noted_look(*given: Any) -> Tensor:
        ran.append((None, given[10]))
        return look(*given)

    monkeypatch.setattr(plain, "product", noted_product)
    monkeypatch.setattr(plain, "look", noted_look)
    ahead = on_gpu.Ahead(qkv=64, look=96, out=128, gate_up=1 << 30, down=8)
    monkeypatch.setattr(on_gpu, "ahead_of", lambda rows: ahead)
    model = small_model(WIDE)
    with elsewhere():
        model.to(AWAY)
    counted(items(compile=True, linears="plain"), model)  # heads multiply as torch does
    kernels = 5 * model.plan.model.facts.num_layers
    assert len(ran) % kernels == 0
    step = ran[:kernels]
    firsts = {0: (2, 0, 64), 1: (2, 0, 96), 2: (1, 96, 128), 3: (1, 0, 1 << 30), 4: (1, 0, 8)}
    for index, (_, later) in enumerate(step[:-1]):
        after, first, size = firsts[index % 5]
        weight = step[index + after][0]
        assert weight is not None
        assert later is not None
        each = weight.element_size()
        assert torch.equal(later.cpu(), weight[first // each : (first + size) // each])
    assert step[-1][1] is None


def test_codes_become_pictures(here: UnifiedModel, away: UnifiedModel) -> None:
    codes = here.encode("image", [picture(1), picture(2)])
    made, _ = counted(lambda model: model.encode("image", [picture(1), picture(2)]), away)
    assert torch.equal(made, codes)
    pictures, _ = counted(lambda model: model.decode("image", codes), away)
    for one, other in zip(pictures, here.decode("image", codes), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_host_waits_as_often_for_many_codes_as_for_few(compile: bool, guidance: float) -> None:
    waits = []
    for size in (8, 16):  # 16 and 64 codes
        model = small_model(RUN.replace("image_size: 8", f"image_size: {size}"))
        with elsewhere():
            model.to(AWAY)
        codes, counts = counted(items(compile=compile, guidance=guidance), model)
        waits.append((codes.shape[1], counts))
    (few, fewer), (many, more) = waits
    assert many == 4 * few
    assert fewer == more
    assert sum(more.values()) < many


def test_the_host_looks_at_words_now_and_then(away: UnifiedModel) -> None:
    short, long = (
        sum(counted(words("two", max_new_tokens=number, temperature=1.0), away)[1].values())
        for number in (LOOK, 2 * LOOK)
    )
    assert long - short <= 2


@pytest.mark.parametrize(("prompts", "seen"), [(["a seven", "a three"], 0), (["a seven", "a"], 1)])
def test_kernels_read_what_is_visible_only_where_rows_are_padded(
    prompts: list[str], seen: int, plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = set()
    look = plain.look
    monkeypatch.setattr(plain, "look", lambda *each: given.add(each[6] is not None) or look(*each))
    here = small_model(WIDE)
    with elsewhere():
        away = copy.deepcopy(here).to(AWAY)

    def way(model: UnifiedModel) -> Any:
        return generate(model, prompts, compile=True, temperature=0.0, guidance=1.0, return_codes=True)

    expected, (made, _) = way(here), counted(way, away)
    assert torch.equal(made, expected)
    assert given == {bool(seen)}


def test_heads_multiply_by_kernels(plain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    product = plain.product
    monkeypatch.setattr(plain, "product", lambda source, weight, **options: asked.append(len(weight)) or product(
        source, weight, **options
    ))  # fmt: skip
    monkeypatch.setattr(linears, "_SMALLEST", 1)
    here = small_model(WIDE)
    with elsewhere():
        away = copy.deepcopy(here).to(AWAY)
    head = here.generation["image"].head
    widths = {len(layer.weight) for layer in head.modules() if isinstance(layer, torch.nn.Linear)}
    for name, of in (
        ("compiled", widths),
        ("compiled words", {len(here.language_model.text_head.output.weight)}),
    ):
        asked.clear()
        expected, (made, _) = WAYS[name](here), counted(WAYS[name], away)
        assert torch.equal(made, expected) if isinstance(made, Tensor) else made == expected
        assert of <= set(asked)
    asked.clear()
    counted(items(compile=True, linears="plain"), away)
    assert 16 in widths - set(asked)
