"""The signatures of a module's public names, as docs/plugins/reference.md shows them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "janus_plugins"
SHOWN = {
    "core/hookspecs.py": ("janus_components",),
    "core/specs.py": None,
    "core/facts.py": None,
    "core/contracts.py": None,
    "core/samples.py": None,
    "core/media.py": ("ImageProcessor", "open_image", "fit_pad", "fit_crop", "to_array"),
    "core/choice.py": None,
    "core/weights.py": None,
    "testing/check.py": None,
    "testing/report.py": ("CheckReport", "RuleResult", "ContractBroken"),
}
"""Modules whose public classes and functions the page shows: those named, or (None) all of them."""


def signatures(module: str) -> dict[str, str]:
    """Return name -> code for each public class and function that the page must show."""
    wanted = SHOWN[module]
    body = ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body
    nodes = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    public = [node for node in nodes if (node.name in wanted if wanted else not node.name.startswith("_"))]
    return {node.name: "\n".join(_shown(node)) for node in public}


def _shown(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Constant(None))}"
        return
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    members = [line for member in node.body for line in _member(member)]
    yield from members or ["    ..."]


def _member(member: ast.stmt) -> Iterator[str]:
    if isinstance(member, ast.AnnAssign) or (
        isinstance(member, ast.Assign)
        and not ast.unparse(member.targets[0]).startswith(("_", "model_config"))
    ):
        yield f"    {ast.unparse(member)}"
    elif isinstance(member, ast.FunctionDef) and (not member.name.startswith("_") or member.name in _CALLED):
        decorators = [ast.unparse(each) for each in member.decorator_list]
        yield from (f"    @{each}" for each in decorators)
        returns = f" -> {ast.unparse(member.returns)}" if member.returns else ""
        yield f"    def {member.name}({ast.unparse(member.args)}){returns}"


_CALLED = ("__call__", "__len__", "__getitem__", "__init__")
