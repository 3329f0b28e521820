"""Prompts from a file: a line each, or the "prompt" of each line of JSON, as benchmarks' lists have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from janus_plugins.core.errors import RunFileError

_JSON_LINES = (".jsonl", ".json")


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file in order; blank lines are skipped.

    Args:
        path: a text file in UTF-8; of one that ends in .jsonl or .json each line is JSON with a "prompt".

    Raises:
        RunFileError: there is no such file, it holds no prompt, or a line cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunFileError(
            f"--prompts {path}: not text in UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    except OSError as error:
        raise RunFileError(
            f"--prompts {path}: {error.strerror}; it takes a file with a prompt a line, --prompt one prompt"
        ) from error
    # Not splitlines, which also splits at separators that a text may hold.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    prompts = list(_of_json(path, lines)) if path.suffix in _JSON_LINES else [line for _, line in lines]
    if not prompts:
        raise RunFileError(f"--prompts {path}: it holds no prompt")
    return prompts


def _of_json(path: Path, lines: list[tuple[int, str]]) -> Iterator[str]:
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunFileError(
                f'--prompts {path}, line {number}: no JSON ({error}); a line holds one object with a "prompt"'
            ) from error
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str):
            raise RunFileError(f'--prompts {path}, line {number}: no text under "prompt"')
        yield prompt
