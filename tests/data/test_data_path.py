"""The page that follows one sample prints what it says. Run as a program it writes the values anew."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "data_path.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```\n", re.DOTALL)


def printed(code: str, scope: dict[str, Any]) -> str:
    target = io.StringIO()
    with contextlib.redirect_stdout(target):
        exec(code, scope)
    return target.getvalue()


def test_the_page_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks, scope = list(BLOCK.finditer(PAGE.read_text())), {}
    assert len(blocks) == PAGE.read_text().count("```python") == 8
    for block in blocks:
        assert printed(block["code"], scope) == block["output"], block["code"]


if __name__ == "__main__":
    names: dict[str, Any] = {}
    PAGE.write_text(
        BLOCK.sub(
            lambda found: f"```python\n{found['code']}```\n\n```text\n{printed(found['code'], names)}```\n",
            PAGE.read_text(),
        )
    )
