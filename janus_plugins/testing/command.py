"""What `janus-plugins check` does: the kit run over installed components, by name or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.utils import canonicalize_name

from janus_plugins.core.catalogue import Catalogue, CatalogueEntry
from janus_plugins.core.errors import PluginError, RunFileError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.plugins import missing_modules
from janus_plugins.core.suggest import nearest
from janus_plugins.core.yaml_file import parse_yaml
from janus_plugins.testing.check import check_component
from janus_plugins.testing.presets import tiny_options
from janus_plugins.testing.report import CheckReport, RuleResult


def chosen(found: Catalogue, component: str | None, kind: str | None) -> list[CatalogueEntry]:
    """Return the components that are meant: all of them, or those of a name or a distribution.

    Args:
        found: what is installed.
        component: "name", "distribution/name", or "distribution/" for all of its components.
        kind: only this kind, as YAML spells it.

    Raises:
        RunFileError: there is no such kind.
        PluginError: there is no such component, or its plugin did not load.
    """
    if kind is not None and kind not in list(Kind):
        known = [str(each) for each in Kind]
        raise RunFileError(f"there is no kind {kind!r}.{nearest(kind, known)} Kinds: {', '.join(known)}")
    entries = [entry for entry in found.entries() if kind in (None, str(entry.spec.kind))]
    if component is None:
        return entries
    distribution, _, name = component.rpartition("/")
    owner = canonicalize_name(distribution) if distribution else ""
    meant = [
        entry
        for entry in entries
        if name in ("", entry.spec.name) and owner in ("", entry.owner.distribution)
    ]
    if not meant and kind is not None:
        found.get(Kind(kind), component)  # raises what went wrong
    if not meant:
        names = sorted({entry.spec.name for entry in entries})
        failures = "".join(f" {failure[0].upper()}{failure[1:]}." for failure in found.failures())
        raise PluginError(
            f"no component is called {component!r}.{nearest(component, names)}{failures} "
            "`janus-plugins plugins` lists what is installed, and what failed to load"
        )
    return meant


def check_entries(
    entries: Sequence[CatalogueEntry], changes: Sequence[str] = (), ranks: bool = False
) -> Iterator[CheckReport]:
    """Check components one after another; one whose extra is missing yields a report that says so.

    Args:
        entries: what to check.
        changes: options as "name=value", the value in YAML, over those that each is checked with.
        ranks: also train each on two ranks under ZeRO-3.
    """
    changed = dict(map(_option, changes))
    for entry in entries:
        missing = missing_modules(entry.spec)
        if missing:
            yield _not_installed(entry, missing)
        else:
            yield _checked(entry, changed, ranks)


def _checked(entry: CatalogueEntry, changed: Mapping[str, Any], ranks: bool) -> CheckReport:
    with TemporaryDirectory() as folder:
        options = {**tiny_options(entry.spec, Path(folder)), **changed}
        return check_component(entry.spec, options=options, ranks=ranks, raises=False)


def _not_installed(entry: CatalogueEntry, missing: list[str]) -> CheckReport:
    reason = f"needs {entry.spec.extra or ', '.join(missing)}"
    return CheckReport(
        str(entry.spec.kind), entry.spec.name, (RuleResult("builds", "", "skipped", seen=reason),)
    )


def _option(change: str) -> tuple[str, Any]:
    name, mark, value = change.partition("=")
    if not mark or not name:
        raise RunFileError(f"--set {change!r} must read NAME=VALUE, e.g. width=16")
    return name, parse_yaml(value, f"--set {name}", numbered=False).plain()
