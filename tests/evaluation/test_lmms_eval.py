"""A model answers lmms-eval's requests as `ask` does. lmms-eval itself is not needed: its base classes are stood for."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from janus_plugins import door
from janus_plugins.core.errors import CheckpointError, RunFileError
from tests.tiny import write_tiny


class Base:
    """What `lmms_eval.api.model.lmms` gives its subclasses."""

    def __init__(self) -> None:
        self._rank = 0
        self.task_dict: dict[str, Any] = {}
        self.kept: list[tuple[str, Any, str]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *one: self.kept.append(one))

    @property
    def rank(self) -> int:
        return self._rank

    @staticmethod
    def _resolve_system_prompt(value: str) -> str:
        return Path(value).read_text().strip() if value and os.path.isfile(value) else value


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Let our module be imported beside the names it takes from lmms-eval."""
    names = {"model": {"lmms": Base}, "instance": {"Instance": object}}
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, values in names.items():
        module = ModuleType(f"lmms_eval.api.{name}")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    registry = ModuleType("lmms_eval.models.registry_v2")
    vars(registry)["ModelManifest"] = ModelManifest
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    monkeypatch.delitem(sys.modules, "janus_plugins.evaluation.lmms_eval_model", raising=False)
    yield import_module("janus_plugins.evaluation.lmms_eval_model")
    sys.modules.pop("janus_plugins.evaluation.lmms_eval_model", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lmms")
    door.compose(write_tiny(place)).save(str(place / "model"))
    return place / "model"


def shown(text: str, *pictures: Image.Image, system: str | None = None) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": picture} for picture in pictures] + [{"type": "text", "text": text}]
    before = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return [*before, {"role": "user", "content": content}]


def requests_of(model: Any, documents: list[Any], settings: list[dict[str, Any]]) -> list[Any]:
    model.task_dict = {"task": {"test": documents}}
    return [
        SimpleNamespace(args=("context", lambda document: document, each, number, "task", "test"))
        for number, each in enumerate(settings)
    ]


def test_answers_are_those_of_ask_whatever_their_order_and_settings(lmms_eval: Any, folder: Path) -> None:
    white, black = (Image.new("RGB", (8, 8), colour) for colour in ("white", "black"))
    model = lmms_eval.JanusPlugins(pretrained=str(folder), device="cpu", batch_size="2")
    documents = [
        shown("Which digit is this?", white),
        shown("Put in order: <image> two nine"),
        shown("Which digit is this?", black),
        shown("Which digit is this?", white, black),
        shown("Which digit is this?", white, system="Answer."),
    ]
    short, long = {"max_new_tokens": 2, "do_sample": False, "temperature": 1.0}, {"max_new_tokens": 6}
    settings = [long, short, short, long, long]
    answers = model.generate_until(requests_of(model, documents, settings))
    plain = door.load(folder, "cpu")
    pictures = [[white], [], [black], [white, black], [white]]
    assert answers == [
        plain.ask(
            document[-1]["content"][-1]["text"],
            items={"image": images},
            max_new_tokens=each["max_new_tokens"],
            **({"system": "Answer."} if number == 4 else {}),
        )
        for number, (document, images, each) in enumerate(zip(documents, pictures, settings, strict=True))
    ]
    assert [one[2] for one in sorted(model.kept, key=lambda one: one[1][3])] == answers
    assert len(set(answers)) > 1


def test_settings_are_read(lmms_eval: Any, folder: Path) -> None:
    asked: list[dict[str, Any]] = []
    model = lmms_eval.JanusPlugins(pretrained=str(folder), system="", seed=5)
    model._model = SimpleNamespace(
        plan=model._model.plan,
        ask=lambda questions, **options: asked.append(options) or ["one\n\ntwo" for _ in questions],
    )
    settings = [
        {"temperature": 0.5, "top_p": 0.9, "until": ["\n\n"], "num_beams": 1},
        {"temperature": 0, "top_p": 1.0, "until": "\n", "max_new_tokens": 16},
        {"temperature": 0.5, "do_sample": False},
        {"temperature": 0.2, "do_sample": True, "top_p": 0, "until": ["two"]},
    ]
    answers = model.generate_until(requests_of(model, [shown("a")] * 4, settings))
    assert answers == ["one", "one", "one\n\ntwo", "one\n\n"]
    told = {options["max_new_tokens"]: options for options in asked if options["temperature"] == 0}
    assert {one["temperature"]: one["top_p"] for one in asked} == {0.5: 0.9, 0.0: None}
    assert sorted(told) == [16, 512]
    assert all(one["system"] == "" and one["seed"] == 5 and one["max_rows"] == 1 for one in asked)


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (["<image>", "What is it?"], "What is it?"),
        (["<image>", "What is <image> here?"], "What is <image> here?"),
        (["<image>", "Is an <image> tag shown, an <image>?"], "Is an  tag shown, an ?"),
        (["From ", "<image>", " to ", "<image>", "."], "From <image> to <image>."),
        (["A <image> tag in ", "<image>"], "A  tag in <image>"),
        (["<image>", "<audio>", "Do they fit?"], "<image><audio>Do they fit?"),
        (["How many <image> tags?"], "How many <image> tags?"),
    ],
)
def test_items_stand_where_they_are_shown(lmms_eval: Any, contents: list[str], text: str) -> None:
    given = [(one[1:-1], object()) if one in ("<image>", "<audio>") else ("text", one) for one in contents]
    question, items = lmms_eval.question_of(given)
    assert question == text
    assert [item for of in items.values() for item in of] == [item for kind, item in given if kind != "text"]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([*shown("a"), {"role": "assistant", "content": "b"}, *shown("c")], "turns of user, assistant, user"),
        ([], "turns of nobody"),
        (
            [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}],
            "shows video; .* understands image",
        ),
    ],
)
def test_what_is_no_single_question_is_refused(
    lmms_eval: Any, folder: Path, messages: list[Any], told: str
) -> None:
    model = lmms_eval.JanusPlugins(pretrained=str(folder))
    with pytest.raises(RunFileError, match=f"task task, document 0.*{told}"):
        model.generate_until(requests_of(model, [messages], [{}]))
    with pytest.raises(NotImplementedError, match="choose one that generates"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="choose one of single questions"):
        model.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sytem": "a"}, "sytem is unknown. Did you mean 'system'"),
        ({"batch_size": "auto"}, "--batch_size auto: it takes a number"),
    ],
)
def test_arguments_are_checked(lmms_eval: Any, folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(RunFileError, match=told):
        lmms_eval.JanusPlugins(pretrained=str(folder), **options)
    with pytest.raises(CheckpointError, match="not a folder"):
        lmms_eval.JanusPlugins(pretrained=str(folder / "none"))


def test_the_entry_point_names_the_class(lmms_eval: Any) -> None:
    (entry,) = (each for each in entry_points(group="lmms_eval.models") if each.name == "janus_plugins")
    manifest = entry.load()()
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert manifest.model_id == "janus_plugins"
    assert getattr(import_module(module), name) is lmms_eval.JanusPlugins
    assert not lmms_eval.JanusPlugins.is_simple


def test_the_entry_point_is_light() -> None:
    code = "import sys; import janus_plugins.evaluation.lmms_eval_entry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
