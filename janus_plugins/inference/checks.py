"""Check and arrange a user's arguments, before anything runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from janus_plugins.core.errors import BadSample, RunFileError
from janus_plugins.core.suggest import quoted
from janus_plugins.inference.ahead import DECODINGS
from janus_plugins.inference.linears import LINEARS

Given = dict[str, list[object]]
"""One question's items by modality, in order."""


def texts_of(value: str | Sequence[str], what: str) -> list[str]:
    """Return one text or several as a list.

    Raises:
        RunFileError: there is none, or one of them is no text.
    """
    if not isinstance(value, Iterable):
        raise RunFileError(f"{what} is {value!r:.60}; give a text, or a list of texts")
    texts = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise RunFileError(f"no {what} was given; give a text, or a list of at least one")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise RunFileError(f"{what} {index} is a {type(text).__name__}, not a text")
    return texts


def plain_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with numpy's single numbers as Python's own."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}


def check_not_negative(**values: float) -> None:
    """Refuse settings that are negative, NaN, or too small or large to compute with, by name."""
    for name, value in values.items():
        known = isinstance(value, (int, float)) and not math.isnan(value)
        if not known or value < 0:
            raise RunFileError(f"{name} is {value!r:.60}; it must be a number of at least 0")
        if value and not 1e-6 <= value <= 1e6:
            raise RunFileError(f"{name} is {value}; it must be 0, or from 1e-6 to 1e6")


def check_counts(**values: int | None) -> None:
    """Refuse counts below 1, by name; None stands for a default."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise RunFileError(f"{name} is {value!r:.60}; it must be a whole number of at least 1")


def check_seed(value: int) -> None:
    """Refuse a seed that is no whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RunFileError(f"seed is {value!r:.60}; it must be a whole number")


def check_top_p(value: float | None, **temperatures: float) -> None:
    """Refuse a share that keeps nothing, or more than all, and one of text that is not drawn.

    Args:
        value: the share.
        temperatures: the temperature of text, by its name.
    """
    if value is None:
        return
    if not (isinstance(value, (int, float)) and 0 < value <= 1):
        raise RunFileError(f"top_p is {value!r:.60}; it must be above 0 and at most 1")
    for name, temperature in temperatures.items():
        if temperature == 0:
            raise RunFileError(
                f"top_p is {value}, but at {name} 0 the likeliest token is always taken; set {name} above 0, "
                "or leave top_p out"
            )


def check_system(value: str | None) -> None:
    """Refuse a system prompt that is no text; None stands for the template's."""
    if value is not None and not isinstance(value, str):
        raise RunFileError(f"system is {value!r:.60}; it must be a text")


def check_linears(value: str) -> None:
    """Refuse a way of computing linear layers that there is not."""
    if value not in LINEARS:
        raise RunFileError(f"linears is {value!r}; it must be one of {', '.join(LINEARS)}")


def check_decoding(value: str, window: int | None) -> None:
    """Refuse a way of decoding items that there is not, and a window of one that has none."""
    if value not in DECODINGS:
        raise RunFileError(f"decoding is {value!r}; it must be one of {', '.join(DECODINGS)}")
    if value == "steps" and window is not None:
        raise RunFileError(
            f"window is {window}, but decoding 'steps' has none; leave it out, or choose jacobi or zigzag"
        )


def numbered(texts: Sequence[str], count: int) -> list[list[int]]:
    """Return the numbers of `count` items of each text; a text that comes again goes on counting."""
    seen: Counter[str] = Counter()
    numbers = []
    for text in texts:
        numbers.append(list(range(seen[text], seen[text] + count)))
        seen[text] += count
    return numbers


def chosen(only: Sequence[int] | None, number: int) -> list[int]:
    """Return which of a call's `number` answers are to be made.

    Raises:
        RunFileError: `only` names none, one that there is not, or not in order.
    """
    if only is None:
        return list(range(number))
    given = list(only) if isinstance(only, Iterable) else []
    places = [int(place) for place in given if isinstance(place, Integral) and not isinstance(place, bool)]
    if not given or len(places) < len(given) or any(not 0 <= place < number for place in places):
        raise RunFileError(
            f"only is {only!r:.60}; it takes places from 0 to {number - 1} among the answers of the call"
        )
    if any(one >= other for one, other in pairwise(places)):
        raise RunFileError(f"only is {only!r:.60}; it takes places in order, each once")
    return places


def items_by_question(
    images: object,
    items: Mapping[str, object] | None,
    num_questions: int,
    single: bool,
    what: str = "question",
) -> list[Given]:
    """Arrange items by question: the images first, then the other modalities in their order.

    Args:
        images: one question's images, or a list of images a question; one image may stand alone.
        items: the same for any modality.
        num_questions: how many questions there are.
        single: whether the question was given as one text, not as a list.
        what: what a question is called in a message.

    Raises:
        RunFileError: items that are not given by modality, not one entry a question, or images both ways.
    """
    if not isinstance(items, Mapping | None):
        raise RunFileError(f"items is {items!r:.60}; give them by modality, {{'image': [...]}}, say")
    columns = dict(items or {})
    if images is not None:
        if "image" in columns:
            raise RunFileError("images are given both as images= and in items=; give them once")
        columns = {"image": images, **columns}
    rows: list[Given] = [{} for _ in range(num_questions)]
    for modality, value in columns.items():
        entries = [value] if single else _listed(value)
        if len(entries) != num_questions:
            raise RunFileError(
                f"{modality}: {len(entries)} entries for {num_questions} {what}s; give one list of items "
                f"for each {what}, an empty one where it has none"
            )
        for row, entry in zip(rows, entries, strict=True):
            row[modality] = _listed(entry)
    return rows


def check_marked(
    texts: Sequence[str], given: Sequence[Given], marks: Mapping[str, str], items: Mapping[str, object] | None
) -> None:
    """Refuse a text that marks places for items of which nothing was said.

    Samples may hold such a text, as captions do; who asks what they say gives an empty list of the modality,
    or no modality at all: `items={}`.

    Args:
        texts: questions or prompts.
        given: the items of each.
        marks: mark -> its modality, of those that the model understands.
        items: what `given` was arranged from.

    Raises:
        BadSample: naming the text, the mark and how often it stands there.
    """
    if items is not None and not items:
        return
    for text, row in zip(texts, given, strict=True):
        for mark, modality in marks.items():
            if mark in text and modality not in row:
                raise BadSample(
                    f"{quoted(text)} marks {text.count(mark)} places with {mark} for 0 items; give it as "
                    f"many (--input {modality}=FILE), or items={{}} where the mark is meant as text"
                )


def _listed(value: object) -> list[object]:
    """Return a list of items; a single item may stand without its list, None is no item."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
