"""The run files in docs/training_the_reference.md, and that it names every data set of the recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from janus_plugins.core.runfile import load_run_text
from janus_plugins.core.wiring import resolve
from janus_plugins.door import plan as plan_of
from janus_plugins.sources.hf_dataset.spec import HfDatasetConfig

PAGE = (Path(__file__).parents[2] / "docs" / "training_the_reference.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def whole(block: str) -> str:
    return block if block.startswith("base:") else f"base: janus_1.3b\n{block}"


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_run_files_of_the_page(block: str) -> None:
    run = load_run_text(whole(block), "page.yaml")
    if "FOLDER" not in block:  # what a folder holds is read when it is resolved
        resolve(run)


def test_a_set_is_taken_out_by_null() -> None:
    (block,) = [block for block in BLOCKS if "null" in block]
    sources = load_run_text(block, "page.yaml").stages[1].sources or {}
    before = plan_of("janus_1.3b").run.stages[1].sources or {}
    assert set(before) - set(sources) == {"draw_in_house_2m", "caption_mmsci"}


def test_every_data_set_is_on_the_page() -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
    missing = [name for name in plan_of("janus_1.3b").data if name not in named]
    assert missing == []


def test_every_combination_of_columns_is_in_the_table_of_formats() -> None:
    with pytest.raises(ValueError, match="these do: ") as refused:
        HfDatasetConfig(path="somewhere", columns={"question": "{question}"})
    known = str(refused.value).partition("these do: ")[2].partition(" [type=")[0].split("; ")
    table = PAGE.partition("| columns | sample |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    spelt = [cell for row in rows for cell in (row, row.partition(" (and ")[0])]
    told = {frozenset(re.findall(r"`(\w+)`", cell)) for cell in spelt}
    assert told == {frozenset(each.split(" + ")) for each in known}
