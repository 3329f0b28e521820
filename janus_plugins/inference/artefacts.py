"""What a model made, and the files it is kept in."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from janus_plugins.core.errors import DataError
from janus_plugins.core.outputs import partial_file, replaced

if TYPE_CHECKING:
    from janus_plugins.model.unified import UnifiedModel

_SLUG_LENGTH = 40


@dataclass(frozen=True, eq=False)  # tensors and artefacts have no answer to ==
class Generated:
    """Hold one made item; it equals itself alone.

    Attributes:
        prompt: what was asked for.
        seed: seed of the call; with `prompt` and `index` it gives this item again.
        index: which item of its prompt this is.
        artefact: what the processor made of it (for images a PIL image).
        codes: its codes [T] or [T, Q] (int64), or latents [T, C], on the CPU.
        modality: the generation path that made it.
        guidance: guidance it was made with.
        temperature: temperature it was made with.
    """

    prompt: str
    seed: int
    index: int
    artefact: Any
    codes: Tensor = field(repr=False)
    modality: str
    guidance: float
    temperature: float


@dataclass(frozen=True)
class Interleaved:
    """Hold one answer of text and items.

    Attributes:
        prompt: what was asked for.
        seed: seed of the call.
        index: which answer to this prompt it is.
        parts: text and items in order. An item's own `index` counts within the answer.
    """

    prompt: str
    seed: int
    index: int
    parts: tuple[str | Generated, ...]

    @property
    def items(self) -> list[Generated]:
        """Return the items alone, in order."""
        return [part for part in self.parts if isinstance(part, Generated)]


def save_generated(
    model: UnifiedModel,
    made: Sequence[Generated],
    out_dir: str | Path,
    prompts: Sequence[str] | Mapping[str, int] | None = None,
) -> list[Path]:
    """Write items to `<prompt number>_<index>_<slug><suffix>` in a folder, and return the paths.

    Prompt, seed and settings stand in a file's metadata where its format has any. No file is
    overwritten: a taken name gets a number. Nor is one left half-written.

    Args:
        model: what made them.
        made: the items.
        out_dir: the folder, made where there is none.
        prompts: all prompts in the order of their numbers, or `prompt_numbers` of them, for some of a call's
            items (default: the items').

    Raises:
        DataError: the folder cannot be written to.
    """
    folder = Path(out_dir)
    numbers = prompts
    if not isinstance(numbers, Mapping):
        numbers = prompt_numbers([*(numbers or ()), *[one.prompt for one in made]])
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in made:
            processor = model.processor(one.modality)
            stem = f"{numbers[one.prompt]:04d}_{one.index:02d}_{slug(one.prompt)}"
            with _beside(folder, stem, processor.suffix) as partial:
                processor.write(one.artefact, str(partial), metadata(model, one))
                paths.append(_named(partial, folder, stem, processor.suffix))
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error}") from error
    return paths


def prompt_numbers(prompts: Sequence[str]) -> dict[str, int]:
    """Return the number of each prompt, by which its files are named; equal ones share it."""
    return {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}


class AnswerFiles:
    """Write answers of one call as they come: items as `save_generated` does, and two indices.

    `index.jsonl` holds one answer a line, text and files in order; `index.md` shows the same. They hold the
    answers in the order in which they came, and at the end in that of their prompts. No file is overwritten,
    and none is left half-written.

    Args:
        model: what makes them.
        out_dir: the folder, made where there is none.
        prompts: the prompts of the call.
        only: places of those that are answered (default: all).
    """

    def __init__(
        self,
        model: UnifiedModel,
        out_dir: str | Path,
        prompts: Sequence[str],
        only: Sequence[int] | None = None,
    ) -> None:
        self._model, self._folder, self._numbers = model, Path(out_dir), prompt_numbers(prompts)
        self._awaited = deque(range(len(prompts)) if only is None else only)
        self._places: dict[tuple[str, int], int] = {}
        counts: Counter[str] = Counter()
        for place, prompt in enumerate(prompts):
            self._places[prompt, counts[prompt]] = place
            counts[prompt] += 1
        self._records: dict[int, dict[str, Any]] = {}
        self._lines: dict[int, list[str]] = {}
        self._indices: list[Path] = []

    def add(self, answer: Interleaved) -> list[str]:
        """Write an answer; return what to print: of it, and of later ones that waited for it, in order.

        Raises:
            DataError: the folder cannot be written to.
        """
        paths = save_generated(self._model, answer.items, self._folder, self._numbers)
        place = self._places[answer.prompt, answer.index]
        record = _record(answer, iter([path.name for path in paths]))
        with self._writing():
            if not self._records:
                self._indices = [_reserved(self._folder, "index", suffix) for suffix in _INDICES]
            gap = "\n" if self._records else ""
            _append(self._indices, [_line(record), gap + _page(record)])
        files = iter(map(str, paths))
        self._records[place] = record
        self._lines[place] = [part if isinstance(part, str) else next(files) for part in answer.parts]
        ready: list[str] = []
        while self._awaited and self._awaited[0] in self._lines:
            ready += self._lines.pop(self._awaited.popleft())
        return ready

    def close(self) -> list[Path]:
        """Put the indices into the order of the prompts, and return their paths.

        Raises:
            DataError: the folder cannot be written to.
        """
        if list(self._records) != sorted(self._records):
            records = [self._records[place] for place in sorted(self._records)]
            texts = ("".join(map(_line, records)), "\n".join(map(_page, records)))
            with self._writing():
                for path, text in zip(self._indices, texts, strict=True):
                    with replaced(path) as partial:
                        partial.write_text(text, encoding="utf-8")
        return self._indices

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write to {self._folder}: {error}") from error


_INDICES = (".jsonl", ".md")


def _append(paths: Sequence[Path], texts: Sequence[str]) -> None:
    """Add a text to each file; where that is broken off they are as before, and empty ones removed."""
    sizes = [path.stat().st_size for path in paths]
    try:
        for path, text in zip(paths, texts, strict=True):
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
    except BaseException:
        for path, size in zip(paths, sizes, strict=True):
            if size:
                os.truncate(path, size)
            else:
                path.unlink()
        raise


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _record(answer: Interleaved, names: Iterator[str]) -> dict[str, Any]:
    parts = [
        {"text": part} if isinstance(part, str) else {"modality": part.modality, "file": next(names)}
        for part in answer.parts
    ]
    return {"prompt": answer.prompt, "seed": answer.seed, "index": answer.index, "parts": parts}


def _page(record: dict[str, Any]) -> str:
    """Return one answer in Markdown."""
    title = " ".join(record["prompt"].split()) or "(no text)"
    shown = [part.get("text") or f"![{part['modality']}]({part['file']})" for part in record["parts"]]
    return "\n\n".join([f"## {title}", *shown]) + "\n"


def metadata(model: UnifiedModel, one: Generated) -> dict[str, str]:
    """Return what a file says about how it was made."""
    return {
        "prompt": one.prompt,
        "seed": str(one.seed),
        "index": str(one.index),
        "guidance": str(one.guidance),
        "temperature": str(one.temperature),
        "model": model.plan.run.name,
    }


def slug(text: str) -> str:
    """Return a short, safe part of a file name: letters and digits of any script, joined by hyphens."""
    words = re.findall(r"[^\W_]+", text.lower())
    return "-".join(words)[:_SLUG_LENGTH].strip("-") or "item"


@contextmanager
def _beside(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """Give the place where a file is written before it gets its name, which it never has while it is half."""
    partial = partial_file(folder, stem, suffix)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _named(partial: Path, folder: Path, stem: str, suffix: str) -> Path:
    """Give a whole file a name that nobody has taken, and return its path."""
    try:  # a second name at once: an empty file that holds a name may stay for ever
        return _taken(folder, stem, suffix, lambda path: os.link(partial, path))
    except OSError:  # this file system has no second names
        path = _reserved(folder, stem, suffix)
    try:
        os.replace(partial, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _reserved(folder: Path, stem: str, suffix: str) -> Path:
    """Create an empty file under a name that nobody has taken, and return its path."""
    return _taken(folder, stem, suffix, lambda path: path.touch(exist_ok=False))


def _taken(folder: Path, stem: str, suffix: str, take: Callable[[Path], None]) -> Path:
    """Return the first name that `take`, which refuses one that is there, could take."""
    number = 0
    while True:
        path = folder / f"{stem}{f'-{number}' if number else ''}{suffix}"
        try:
            take(path)
        except FileExistsError:
            number += 1
        else:
            return path
