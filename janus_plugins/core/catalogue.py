"""The components that installed plugins offer, by kind and name.

Listing shows everything; asking by name either answers or raises what went wrong: an unknown name, a
plugin that did not load, two owners of one name, a library that is not installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from packaging.utils import canonicalize_name

from janus_plugins.core.errors import PluginError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.owner import Owner
from janus_plugins.core.plugins import PluginHost, PluginList, PluginReport, host, is_installed
from janus_plugins.core.side_effects import Bystanders
from janus_plugins.core.specs import ComponentSpec
from janus_plugins.core.suggest import nearest

if TYPE_CHECKING:
    from janus_plugins.core.schema import RunConfig


_log = logging.getLogger(__name__)

OWN = "janus-plugins"
"""Whose component a bare name means where we offer it, too: installing a plugin changes no run file."""


@dataclass(frozen=True)
class CatalogueEntry:
    """Hold one component and who offers it."""

    spec: ComponentSpec
    owner: Owner

    @property
    def full_name(self) -> str:
        """Return "distribution/name", which names it even where two plugins offer the name."""
        return f"{self.owner.distribution}/{self.spec.name}"


class Catalogue:
    """Look components up.

    Args:
        entries: what is offered.
        reports: how loading went, so that a failed lookup can name the plugin that failed.
    """

    def __init__(
        self,
        entries: Iterable[CatalogueEntry],
        reports: Iterable[PluginReport] = (),
        preferred: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self._entries = tuple(sorted(entries, key=_order))
        self._reports = tuple(reports)
        self._preferred = dict(preferred or {})

    def preferring(self, owners: Mapping[tuple[str, str], str]) -> Catalogue:
        """Return a catalogue in which a bare name that several plugins offer means a certain one's.

        Args:
            owners: the distribution of components by kind and name, as a checkpoint's provenance tells.
        """
        return Catalogue(self._entries, self._reports, owners)

    def entries(self) -> tuple[CatalogueEntry, ...]:
        """Return every component, sorted by kind, name and distribution."""
        return self._entries

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Return the names that `get(kind, ...)` answers: bare where that will do, else with distribution."""
        entries = [entry for entry in self._entries if entry.spec.kind == kind]
        meant = [
            self._chosen([one for one in entries if one.spec.name == each.spec.name]) for each in entries
        ]
        return tuple(
            entry.spec.name if chosen == [entry] else entry.full_name
            for entry, chosen in zip(entries, meant, strict=True)
        )

    def get(self, kind: Kind, use: str) -> CatalogueEntry:
        """Return the component that a run file calls `use`: "name" or "distribution/name".

        Raises:
            PluginError: if there is none, if two plugins offer the bare name and janus-plugins does not, if
                the preferred one does not offer it while another plugin does, or if a module that the
                component requires is not installed. (One that is installed and does not import raises when
                the component is loaded: importing it here would bring torch into `validate`.)
        """
        distribution, name = _split(use)
        found = [
            entry
            for entry in self._entries
            if (entry.spec.kind, entry.spec.name) == (kind, name)
            and distribution in ("", entry.owner.distribution)
        ]
        if not found:
            self._refuse(kind, use)
        found = self._chosen(found)
        preferred = "" if distribution else self._preferred.get((str(kind), name), "")
        if preferred and not {entry.owner.distribution for entry in found} & {preferred, OWN}:
            self._refuse_others(kind, use, preferred, found)
        if len(found) > 1:
            spellings = " or ".join(repr(entry.full_name) for entry in found)
            raise PluginError(f"{kind} {use!r} is offered by {len(found)} plugins; write {spellings}")
        _check_required(found[0].spec)
        return found[0]

    def _chosen(self, found: list[CatalogueEntry]) -> list[CatalogueEntry]:
        """Return which of several components of one name it means: the preferred one, our own, or all."""
        spec = found[0].spec
        for wanted in (self._preferred.get((str(spec.kind), spec.name)), OWN):
            chosen = [entry for entry in found if entry.owner.distribution == wanted]
            if chosen:
                return chosen
        return found

    def digest(self) -> str:
        """Return a sha256 of what is offered, equal on two ranks exactly when their plugins are."""
        rows = [
            (str(spec.kind), spec.name, owner.distribution, owner.version, spec.contract)
            for spec, owner in ((entry.spec, entry.owner) for entry in self._entries)
        ]
        return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()

    def _refuse(self, kind: Kind, use: str) -> NoReturn:
        """Raise what explains best why there is no such component."""
        distribution, name = _split(use)
        for report in self._reports:
            declared = any((part.kind, part.name) == (kind, name) for part in report.components)
            if report.status == "ok" or not (declared or report.distribution == distribution):
                continue
            raise PluginError(
                f"{kind} {use!r} cannot be had: {_outcome(report)}. `janus-plugins plugins` shows it"
            ) from report.exception
        guess = nearest(use, self._spellings(kind))
        sentences = [f"no {kind} is called {use!r}.{guess}"]
        sentences.append(f"Available: {', '.join(self.names(kind)) or 'none'}.")
        hints = list(self._hints(kind, distribution, name, bool(guess)))
        if not hints:
            hints = ["If a plugin should offer it: it is not installed here, or declares no entry point."]
        raise PluginError(" ".join([*sentences, *hints]))

    def _refuse_others(self, kind: Kind, use: str, preferred: str, found: list[CatalogueEntry]) -> NoReturn:
        """Raise that only others than the preferred plugin offer a name: theirs is another component."""
        bad = [each for each in self._reports if each.distribution == preferred and each.status != "ok"]
        known = any(each.distribution == preferred for each in self._reports)
        why = f"{preferred}, which offers it no more" if known else f"{preferred}, which is not installed"
        others = " or ".join(repr(entry.full_name) for entry in found)
        raise PluginError(
            f"{kind} {use!r} is that of {f'{preferred}: {_outcome(bad[0])}' if bad else why}. "
            f"{others} has the same name, and may compute something else"
        ) from (bad[0].exception if bad else None)

    def failures(self) -> tuple[str, ...]:
        """Return a sentence for each plugin that did not load."""
        return tuple(_outcome(report) for report in self._reports if report.status == "failed")

    def _hints(self, kind: Kind, distribution: str, name: str, guessed: bool) -> Iterable[str]:
        others = {str(entry.spec.kind) for entry in self._entries if entry.spec.name == name} - {str(kind)}
        for other in sorted(others):
            yield f"({name!r} is a {other}.)"
        if distribution and distribution not in {report.distribution for report in self._reports}:
            step = "if that is no misspelling, install it" if guessed else f"next: pip install {distribution}"
            yield f"No plugin from {distribution!r} is installed; {step}."
        failed = [report for report in self._reports if report.status == "failed"]
        blocked: dict[str, list[str]] = {}
        for report in self._reports:
            if report.status == "blocked":
                blocked.setdefault(report.error, []).append(report.name)
        for report in failed:
            yield f"{_outcome(report)}."
        for reason, names in blocked.items():
            yield _blocked(reason, names)
        if failed or blocked:
            yield "`janus-plugins plugins` shows more."

    def _spellings(self, kind: Kind) -> set[str]:
        entries = [entry for entry in self._entries if entry.spec.kind == kind]
        return {entry.spec.name for entry in entries} | {entry.full_name for entry in entries}


def catalogue() -> Catalogue:
    """Return the catalogue of this process's plugin host; `host.cache_clear()` forgets it."""
    return _catalogue_of(host())


def catalogue_for(run: RunConfig, locate: Callable[[tuple[str | int, ...]], str] | None = None) -> Catalogue:
    """Return the catalogue of the plugins that a run's own lists leave, beside the environment's.

    Args:
        run: the run file.
        locate: where a path of the file stands, for messages.
    """
    return _catalogue_of(host(tuple(_lists_of(run, locate or (lambda path: "")))))


def _lists_of(run: RunConfig, locate: Callable[[tuple[str | int, ...]], str]) -> Iterator[PluginList]:
    if run.plugins.block:
        yield PluginList("block", run.plugins.block, _place("block", locate))
    if run.plugins.allow is not None:
        yield PluginList("allow", run.plugins.allow, _place("allow", locate))


def _place(name: str, locate: Callable[[tuple[str | int, ...]], str]) -> str:
    return f"plugins.{name} of {locate(('plugins', name)) or 'the run file'}"


def load_factory(spec: ComponentSpec) -> Callable[..., Any]:
    """Import the factory of a component; called as `factory(config, facts)`.

    Raises:
        PluginError: naming the component, the import string and the cause.
    """
    return _load_target(spec, "factory", spec.factory)


def load_processor(spec: ComponentSpec) -> Callable[..., Any]:
    """Import the processor class of an encoder; called as `processor(config)`.

    Raises:
        PluginError: naming the component, the import string and the cause.
    """
    if spec.processor is None:
        raise PluginError(f"{spec.kind}/{spec.name} declares no processor")
    return _load_target(spec, "processor", spec.processor)


@lru_cache(maxsize=8)
def _catalogue_of(source: PluginHost) -> Catalogue:
    entries = [CatalogueEntry(spec, plugin.owner) for plugin in source.plugins for spec in plugin.specs]
    return Catalogue(entries, source.reports)


def _order(entry: CatalogueEntry) -> tuple[str, str, str]:
    return (str(entry.spec.kind), entry.spec.name, entry.owner.distribution)


def _split(use: str) -> tuple[str, str]:
    """Split "distribution/name"; the distribution is normalised, and empty for a bare name."""
    distribution, slash, name = use.rpartition("/")
    return (canonicalize_name(distribution) if slash else ""), name


def _blocked(reason: str, names: list[str]) -> str:
    """Say in one sentence which plugins one list blocks: an allow-list may leave out hundreds."""
    if len(names) == 1:
        return f"plugin {names[0]} is blocked ({reason})."
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} plugins are blocked ({reason}): {', '.join(names[:3])}{more}."


def _outcome(report: PluginReport) -> str:
    verb = "is blocked" if report.status == "blocked" else "failed to load"
    return f"plugin {report.name} {verb} ({report.error})"


def _need(spec: ComponentSpec, module: str, cause: BaseException) -> PluginError:
    return PluginError(
        f"{spec.kind} {spec.name!r} needs module {module!r}, which cannot be imported "
        f'({type(cause).__name__}: {cause}); next: pip install "{spec.extra or module}"'
    )


def _check_required(spec: ComponentSpec) -> None:
    """Refuse a component whose modules are not installed, without importing them: some bring torch."""
    for module in spec.requires:
        if not is_installed(module):
            cause = ModuleNotFoundError(f"No module named {module!r}")
            raise _need(spec, module, cause) from cause


def _import_required(spec: ComponentSpec) -> None:
    """Import what the component needs: a module can be found and still not import."""
    for module in spec.requires:
        try:
            import_module(module)
        except Exception as cause:
            raise _need(spec, module, cause) from cause


@contextmanager
def _bystanders_kept(spec: ComponentSpec, modules: Iterable[str]) -> Iterator[None]:
    """Put back what importing modules changes in the process: seeds and settings are the run's.

    Variables of the environment stay: libraries set some for themselves.
    """
    fresh = [name for name in modules if name not in sys.modules]
    if not fresh:
        yield
        return
    bystanders = Bystanders(environment=False)
    try:
        yield
    finally:
        changed = bystanders.put_back()
        if changed:
            told = f"importing {', '.join(fresh)} changes {', '.join(changed)} (put back)"
            _log.warning("%s/%s: %s", spec.kind, spec.name, told)


def _load_target(spec: ComponentSpec, label: str, target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    with _bystanders_kept(spec, (*spec.requires, module)):
        _import_required(spec)
        try:
            loaded = getattr(import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as cause:  # a plugin's module may call sys.exit()
            raise PluginError(
                f"{label} {target!r} of {spec.kind}/{spec.name} cannot be loaded "
                f"({type(cause).__name__}: {cause})"
            ) from cause
    if not callable(loaded):
        raise PluginError(f"{label} {target!r} of {spec.kind}/{spec.name} is not callable: {loaded!r:.80}")
    return loaded  # type: ignore[no-any-return]
