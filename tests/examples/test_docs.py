"""docs/plugins says what the code says: blocks are the examples' files, signatures and rules the package's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from janus_plugins.core import plugins
from janus_plugins.core.kinds import Kind
from janus_plugins.testing.rules import RULES

from .signatures import SHOWN, signatures

ROOT = Path(__file__).parents[2]
DOCS, EXAMPLES = ROOT / "docs" / "plugins", ROOT / "examples"
SECTION = Path(__file__).with_name("register_your_own.md")
"""The three files of `examples/janus-dinov2` on one page, which is nobody's documentation."""
PAGES = (DOCS / "tutorial.md", SECTION)
TAUGHT = ("janus-dinov2", "janus-melody", "janus-motion")
"""The packages that the tutorial builds; the others are proofs that shipped components train."""


def blocks(page: str | Path, key: str) -> Iterator[tuple[str, str]]:
    """Yield (value, code) of each fenced block whose info string says `key=value`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    yield from re.findall(rf"^```\w+ {key}=(\S+)\n(.*?)\n```$", text, flags=re.MULTILINE | re.DOTALL)


def excerpt(path: str, code: str) -> range:
    """Return which lines of an example's file a block is, or fail."""
    wanted = code.splitlines()
    whole = (EXAMPLES / path).read_text(encoding="utf-8").splitlines()
    for start in range(len(whole) - len(wanted) + 1):
        if whole[start : start + len(wanted)] == wanted:
            return range(start, start + len(wanted))
    pytest.fail(f"{path} does not contain\n{code}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_are_excerpts_of_the_examples(page: Path) -> None:
    found = list(blocks(page, "file"))
    assert found
    for path, code in found:
        excerpt(path, code)


def test_every_python_block_of_the_tutorial_names_its_file() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert text.count("```python") == sum(path.endswith(".py") for path, _ in blocks("tutorial.md", "file"))


def test_the_tutorial_shows_all_of_the_packages_that_it_builds() -> None:
    shown: dict[str, set[int]] = {}
    for path, code in blocks("tutorial.md", "file"):
        shown.setdefault(path, set()).update(excerpt(path, code))
    for file in (file for name in TAUGHT for file in (EXAMPLES / name).rglob("*.py")):
        path = str(file.relative_to(EXAMPLES))
        lines = file.read_text(encoding="utf-8").splitlines()
        hidden = [line for row, line in enumerate(lines) if line.strip() and row not in shown.get(path, ())]
        assert not hidden, f"{path}: {hidden}"


def test_run_files_of_the_tutorial_are_those_of_the_examples() -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    readme = (EXAMPLES / "janus-dinov2" / "README.md").read_text(encoding="utf-8")
    encoder, melody = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert encoder in readme
    inner = melody.partition("generation:\n")[2]
    assert inner in (EXAMPLES / "janus-melody" / "melody.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", SHOWN)
def test_signatures_on_the_reference_page_are_those_of_the_code(module: str) -> None:
    shown = [
        code
        for name, part in blocks("reference.md", "module")
        if name == module
        for code in part.split("\n\n")
    ]
    real = list(signatures(module).values())
    missing = [code for code in real if code not in shown]
    stale = [code for code in shown if code not in real]
    assert not missing, "put this on docs/plugins/reference.md:\n\n" + "\n\n".join(missing)
    assert not stale, "docs/plugins/reference.md shows what is no more:\n\n" + "\n\n".join(stale)


def test_the_testing_page_has_every_rule_and_says_what_it_says() -> None:
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\S+)\n\n(.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL))
    rules = {rule.name: rule.summary for several in RULES.values() for rule in several}
    assert set(sections) == set(rules)
    for name, summary in rules.items():
        said = " ".join(sections[name].split())
        assert said.lower() == summary.lower(), name


def test_the_testing_page_lists_the_rules_of_each_kind() -> None:
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    for kind, rules in RULES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {kind.replace('_', ' ')} |"))
        assert re.findall(r"\[([\w-]+)\]", row) == [rule.name for rule in rules]


def test_the_testing_page_counts_every_rule_of_its_example() -> None:
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    ((kind, *counts),) = re.findall(
        r"^(\w+)/\S+: (\d+) passed, (\d+) failed, (\d+) skipped$", text, re.MULTILINE
    )
    assert sum(map(int, counts)) == len(RULES[Kind(kind)])


def test_the_time_of_an_example_is_the_same_wherever_it_is_told() -> None:
    """From the command to the report."""
    pages = (EXAMPLES / "janus-motion/README.md", EXAMPLES / "janus-motion/motion.yaml", DOCS / "tutorial.md")
    texts = [path.read_text(encoding="utf-8") for path in pages]
    told = [re.search(r"about (.{,20}) on one\s+core", text) for text in texts]
    assert len({found and found[1] for found in told}) == 1, told


def test_the_switches_are_those_of_the_host() -> None:
    text = (DOCS / "publishing.md").read_text(encoding="utf-8")
    for variable in (plugins.BLOCK_VARIABLE, plugins.ONLY_VARIABLE, plugins.TRACE_VARIABLE):
        assert f"`{variable}`" in text


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), SECTION], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
