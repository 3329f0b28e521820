"""What a conformance check answers: one result a rule, and an error that reads well in a test run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from janus_plugins.core.errors import JanusPluginsError

Status = Literal["passed", "failed", "skipped"]
PAGE = "docs/plugins/testing.md"
MOST = 500
"""Letters of an unforeseen error that a report shows; torch's may have thousands."""


class Broken(Exception):
    """Report, inside a rule, what was expected and what was seen."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}; saw {seen}")
        self.expected, self.seen = expected, seen


class Skipped(Exception):
    """Report, inside a rule, that it has nothing to check, and why."""


def expect(fine: bool, expected: str, seen: object) -> None:
    """Raise `Broken` unless `fine`."""
    if not fine:
        raise Broken(expected, str(seen))


def described(error: BaseException) -> str:
    """Name an unforeseen error and the line that raised it, or that called what raised it in a library."""
    where, frame = "", error.__traceback__
    while frame is not None:
        file = Path(frame.tb_frame.f_code.co_filename)
        if "torch" not in file.parts and file.name != "elsewhere.py":
            where = f" ({file.name}:{frame.tb_lineno})"
        frame = frame.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MOST]}{where}"


@dataclass(frozen=True)
class RuleResult:
    """Say how one rule went.

    Attributes:
        rule: its name, which is also its heading on the testing page.
        path: for an adapter or a head, what it was tried on ("features", "codes", "latents", "text").
        status: "passed", "failed" or "skipped".
        expected: what the contract asks for (failed only).
        seen: what the component did (failed), or why there was nothing to check (skipped).
        read: where to read about it.
        seconds: wall time.
    """

    rule: str
    path: str
    status: Status
    expected: str = ""
    seen: str = ""
    read: str = ""
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Return the rule's name, with what it was tried on where there are several."""
        return f"{self.rule}[{self.path}]" if self.path else self.rule

    def lines(self) -> Iterator[str]:
        """Yield the result in words, a line each."""
        if self.status != "failed":
            yield f"{self.status:8}{self.label}{': ' + self.seen if self.seen else ''}"
            return
        yield f"FAILED  {self.label}"
        yield f"        expected  {self.expected}"
        yield f"        seen      {self.seen}"
        yield f"        read      {self.read}"


@dataclass(frozen=True)
class CheckReport:
    """Hold the results of one component."""

    kind: str
    name: str
    results: tuple[RuleResult, ...]

    @property
    def failures(self) -> tuple[RuleResult, ...]:
        """Return the rules that failed."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def ok(self) -> bool:
        """Answer whether no rule failed."""
        return not self.failures

    def count(self, status: Status) -> int:
        """Count the results of one status."""
        return sum(result.status == status for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {
            "kind": self.kind,
            "name": self.name,
            "ok": self.ok,
            "rules": [{"label": result.label, **asdict(result)} for result in self.results],
        }

    def text(self, failures_only: bool = False) -> str:
        """Return the report in words: a line a rule, four for one that failed."""
        counts = (
            f"{self.count('passed')} passed, {self.count('failed')} failed, {self.count('skipped')} skipped"
        )
        shown = self.failures if failures_only else self.results
        return "\n".join(
            [f"{self.kind}/{self.name}: {counts}", *(line for one in shown for line in one.lines())]
        )

    def __str__(self) -> str:
        return self.text()


class ContractBroken(JanusPluginsError, AssertionError):
    """Report a component that breaks its contract; `report` holds every rule's result."""

    def __init__(self, report: CheckReport) -> None:
        super().__init__(report.text(failures_only=True))
        self.report = report
