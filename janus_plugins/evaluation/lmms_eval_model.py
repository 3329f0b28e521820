"""A trained model as lmms-eval asks it, to be scored on published benchmarks (POPE, MME, GQA, MMMU, ...)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from janus_plugins.core.errors import RunFileError
from janus_plugins.core.samples import Item, marked
from janus_plugins.core.suggest import nearest
from janus_plugins.door import load

_ROUNDS = 16
"""How many batches are asked in one call: rows that end make room for the next ones."""

Question = tuple[str, str | None, dict[str, list[Any]]]
"""What is asked, the system prompt if the task has one, and items by modality."""


class JanusPlugins(lmms):  # type: ignore[misc]
    """Answer the questions of lmms-eval's tasks with a model's `ask`.

    Of a task's generation settings max_new_tokens, temperature, do_sample, top_p and until are read.

    Args:
        pretrained: a trained model's folder, native or published.
        device: where it computes (default: a GPU where there is one, a process of a launcher its own).
        batch_size: most questions at once.
        system: system prompt of tasks that bring none (default: the template's; empty for none).
        seed: of tasks that sample.
        linears: how linear layers compute on a CPU; see `ask`.
        compile: run each step as one compiled graph.
        max_batch_size: not read; lmms-eval always gives it.

    Raises:
        RunFileError: an unknown argument.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_size: int | str = 1,
        system: str | None = None,
        seed: int = 0,
        linears: str = "packed",
        compile: bool = False,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            name = next(iter(unknown))
            known = ["pretrained", "device", "batch_size", "system", "seed", "linears", "compile"]
            raise RunFileError(
                f"--model_args: {name} is unknown.{nearest(name, known)} Known: {', '.join(known)}"
            )
        if not str(batch_size).isdecimal():
            raise RunFileError(f"--batch_size {batch_size}: it takes a number")
        self._batch = int(batch_size)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self._device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self._device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self._device)
        self._model = load(pretrained, str(self._device))
        self._common: dict[str, Any] = {"seed": seed, "linears": linears, "compile": compile}
        self._system = None if system is None else self._resolve_system_prompt(str(system))

    @property
    def device(self) -> torch.device:
        """Return where the model computes."""
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return an answer to each request.

        Raises:
            RunFileError: a request is no single question, or shows what the model does not understand.
        """
        answers: list[str] = [""] * len(requests)
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="answers")
        for settings, places in _alike([request.args[2] for request in requests]):
            for first in range(0, len(places), self._batch * _ROUNDS):
                some = places[first : first + self._batch * _ROUNDS]
                for place, answer in zip(
                    some, self._said([requests[each] for each in some], settings), strict=True
                ):
                    answers[place] = answer
                    self.cache_hook.add_partial("generate_until", requests[place].args, answer)
                progress.update(len(some))
        progress.close()
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks that compare likelihoods: `ask` answers in text."""
        raise NotImplementedError(
            "tasks of output_type loglikelihood are not served; choose one that generates"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse tasks of several rounds: `ask` answers a single question."""
        raise NotImplementedError("tasks of several rounds are not served; choose one of single questions")

    def _said(self, requests: Sequence[Instance], settings: Mapping[str, Any]) -> list[str]:
        """Ask some questions of equal settings."""
        asked = [self._question(request) for request in requests]
        answers = [""] * len(asked)
        for system, places in _alike([{"system": system} for _, system, _ in asked]):
            # A modality that is named without items says that its mark in a text is text.
            names = self._model.plan.model.understanding
            said = self._model.ask(
                [asked[place][0] for place in places],
                items={name: [asked[place][2].get(name, []) for place in places] for name in names},
                max_rows=self._batch,
                **system,
                **_settings(settings),
                **self._common,
            )
            for place, answer in zip(places, said, strict=True):
                answers[place] = _until(answer, settings.get("until"))
        return answers

    def _question(self, request: Instance) -> Question:
        _, messages_of, _, number, task, split = request.args
        messages = list(messages_of(self.task_dict[task][split][number]))
        system = self._system
        if messages and messages[0]["role"] == "system":
            system = "".join(text for kind, text in _contents(messages.pop(0)) if kind == "text")
        if [message["role"] for message in messages] != ["user"]:
            roles = ", ".join(message["role"] for message in messages)
            raise RunFileError(
                f"task {task}, document {number}: turns of {roles or 'nobody'}, but a single question is "
                "served; leave out examples (--num_fewshot 0), or choose another task"
            )
        text, items = question_of(_contents(messages[0]))
        strange = next((name for name in items if name not in self._model.plan.model.understanding), None)
        if strange is not None:
            known = ", ".join(self._model.plan.model.understanding) or "text alone"
            raise RunFileError(
                f"task {task}, document {number} shows {strange}; this model understands {known}"
            )
        return text, system, items


def question_of(contents: Sequence[tuple[str, Any]]) -> tuple[str, dict[str, list[Any]]]:
    """Return a turn's text, with marks where items stand that are not all before it, and its items.

    A task's own `<image>` counts as a mark where there are as many as images, and is left out otherwise.

    Args:
        contents: ("text", text) or (modality, item), in order.
    """
    parts = [value if kind == "text" else Item(kind, value) for kind, value in contents]
    text, shown = marked(parts)
    items: dict[str, list[Any]] = {}
    for item in shown:
        items.setdefault(item.modality, []).append(item.value)
    if any(text.count(f"<{name}>") not in (0, len(of)) for name, of in items.items()):
        own = re.compile("|".join(f"<{name}>" for name in map(re.escape, items)))
        text, _ = marked([own.sub("", part) if isinstance(part, str) else part for part in parts])
    return text, items


def _contents(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return a message's contents as (kind, value)."""
    given = message["content"]
    if isinstance(given, str):
        return [("text", given)]
    return [(one["type"], one["text"] if one["type"] == "text" else one["url"]) for one in given]


def _alike(values: Sequence[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Yield each different value with the places where it stands."""
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(repr(value), []).append(place)
    for there in places.values():
        yield values[there[0]], there


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's generation settings as those of `ask`."""
    temperature = float(given.get("temperature") or 0)
    if given.get("do_sample") is False or given.get("top_p") == 0:  # which keeps the likeliest token alone
        temperature = 0.0
    return {
        "max_new_tokens": int(given.get("max_new_tokens") or 512),
        "temperature": temperature,
        "top_p": given.get("top_p") if temperature else None,
    }


def _until(answer: str, until: Any) -> str:
    """Return an answer up to the first of the texts that end it."""
    for end in [until] if isinstance(until, str) else until or ():
        if end:
            answer = answer.split(end)[0]
    return answer
