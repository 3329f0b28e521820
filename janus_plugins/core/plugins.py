"""Find the installed plugins, load each behind its own guard, and keep a report of every one.

One broken plugin must not take the others down: an entry point is loaded, checked and asked for its
components alone, and whatever it raises becomes a line of its report. Enumerating therefore never
fails; asking for a component by name does (`core/catalogue.py`).

Knows nothing of what a component is for.
"""

from __future__ import annotations

import gc
import importlib.util
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from types import FunctionType
from typing import Any, Literal, NamedTuple

import pluggy
from packaging.utils import canonicalize_name

from janus_plugins import __version__
from janus_plugins.core import hookspecs
from janus_plugins.core.environment import switched_on
from janus_plugins.core.errors import PluginError
from janus_plugins.core.hookspecs import PROJECT
from janus_plugins.core.owner import Owner
from janus_plugins.core.requirements import unmet_requirements
from janus_plugins.core.side_effects import Bystanders
from janus_plugins.core.specs import CONTRACT_VERSION, ComponentSpec
from janus_plugins.core.suggest import nearest

BLOCK_VARIABLE = "JANUS_PLUGINS_BLOCK"
ONLY_VARIABLE = "JANUS_PLUGINS_ONLY"
TRACE_VARIABLE = "JANUS_PLUGINS_TRACE"

_HOOK = "janus_components"
_LONGEST_ERROR = 300
_log = logging.getLogger(__name__)


class ComponentReport(NamedTuple):
    """Describe one component for a listing; `status` is "ok" or says what is missing."""

    kind: str
    name: str
    summary: str
    status: str


@dataclass(frozen=True)
class PluginReport:
    """Say how loading one entry point went.

    Attributes:
        distribution: normalised name of the distribution, as `pip install` takes it.
        entry: name of its entry point.
        version: installed version of the distribution.
        status: whether its components can be used.
        error: one line on what went wrong or why it is blocked.
        exception: what was raised, to be chained when a component is asked for.
        components: what it declares, as far as it got.
        load_seconds: wall time of importing it and asking for its components.
        note: what is worth knowing about a plugin that works ("imports torch").
    """

    distribution: str
    entry: str
    version: str
    status: Literal["ok", "failed", "blocked"]
    error: str = ""
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    components: tuple[ComponentReport, ...] = ()
    load_seconds: float = field(default=0.0, compare=False)
    note: str = ""

    @property
    def name(self) -> str:
        """Return "distribution:entry", the name by which it is registered and blocked."""
        return f"{self.distribution}:{self.entry}"


@dataclass(frozen=True)
class InstalledEntry:
    """Hold one entry point of our group and who owns it; `problem` says why it cannot be read."""

    owner: Owner
    entry: EntryPoint
    problem: Exception | None = None

    @property
    def name(self) -> str:
        """Return "distribution:entry"."""
        return f"{self.owner.distribution}:{self.entry.name}"


@dataclass(frozen=True)
class LoadedPlugin:
    """Hold an entry point's report and the specs that it offers (none unless its status is ok)."""

    report: PluginReport
    owner: Owner
    specs: tuple[ComponentSpec, ...] = ()


@dataclass(frozen=True)
class PluginList:
    """Bound what is loaded: plugins that are not, or the only ones that are.

    Attributes:
        does: "block" or "allow" the plugins that it names.
        names: `distribution` or `distribution:entry` each.
        where: where it was given, for messages.
    """

    does: Literal["block", "allow"]
    names: tuple[str, ...]
    where: str

    def refusal(self, spellings: Collection[str]) -> str:
        """Say why a plugin of these (normalised) spellings is not loaded, or nothing where it is."""
        named = any(_normal(name) in spellings for name in self.names)
        if self.does == "block":
            return f"named by {self.where}" if named else ""
        return "" if named else f"not named by {self.where}"

    def unknown(self, installed: Collection[str]) -> Iterator[str]:
        """Say which names stand for none of the installed entries ("distribution:entry" each).

        It is no error: a run file may be used where a plugin that it blocks is not installed.
        """
        spellings = {spelling for name in installed for spelling in (name, name.partition(":")[0])}
        for name in self.names:
            if _normal(name) not in spellings:
                guess = nearest(_normal(name), spellings)
                yield f"{self.where} names {name.strip()!r}, which is not installed.{guess}"


class _Manager(pluggy.PluginManager):
    """Look for hooks among a module's own functions: pluggy inspects every name that it can reach."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Return how an attribute is marked, or None."""
        if inspect.ismodule(plugin) and not isinstance(vars(plugin).get(name), FunctionType):
            return None
        return super().parse_hookimpl_opts(plugin, name)


class PluginHost:
    """Load plugins one by one and keep what they offer.

    Args:
        lists: which plugins are loaded; a plugin must pass every one of them.
        entry_points: entries to load instead of the installed ones.
    """

    def __init__(
        self, lists: Iterable[PluginList] = (), entry_points: Iterable[InstalledEntry] | None = None
    ) -> None:
        self._lists = tuple(lists)
        self._entries = entry_points
        self._plugins: tuple[LoadedPlugin, ...] | None = None
        self._loading = False
        self._declared: dict[tuple[str, str, str], str] = {}
        self._manager = _Manager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    @property
    def plugins(self) -> tuple[LoadedPlugin, ...]:
        """Return every plugin, loading them on first use; later calls load nothing."""
        if self._plugins is None:
            if self._loading:
                raise PluginError("a plugin asks for the list of plugins while it is being loaded")
            self._loading = True
            entries = installed_entries() if self._entries is None else list(self._entries)
            entries.sort(key=lambda found: (found.owner.distribution, found.entry.name, found.entry.value))
            for plugins in self._lists:
                for problem in plugins.unknown([found.name for found in entries]):
                    _warn_once(problem)
            bystanders = Bystanders()
            with _garbage_kept():
                self._plugins = tuple(self._load(found, bystanders) for found in entries)
        return self._plugins

    @property
    def reports(self) -> list[PluginReport]:
        """Return the report of every plugin, sorted by distribution and entry."""
        return [plugin.report for plugin in self.plugins]

    def _load(self, found: InstalledEntry, bystanders: Bystanders) -> LoadedPlugin:
        """Load one entry point; whatever it raises ends in its report."""
        reason = self._why_blocked(found)
        if reason:
            return LoadedPlugin(_report(found, "blocked", error=reason), found.owner)
        _trace(f"loading {found.name} ({found.entry.value})")
        had_torch, started = "torch" in sys.modules, time.perf_counter()
        plugin: Any = None
        specs: tuple[ComponentSpec, ...] = ()
        raised: BaseException | None = None
        try:
            # What a plugin prints must not end up in the output of `--json`.
            with redirect_stdout(sys.stderr):
                plugin = self._register(found)
                specs = self._ask(plugin)
                self._accept(found, specs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() at import must not end the program
            raised = error
            if self._manager.has_plugin(found.name):
                self._manager.unregister(name=found.name)
        seconds, changed = time.perf_counter() - started, bystanders.put_back()
        _trace(f"{'failed' if raised else 'loaded'} {found.name} in {seconds:.3f} s")
        report = _report(
            found,
            "failed" if raised else "ok",
            error=_cause(raised, found.owner.distribution) if raised else "",
            exception=raised,
            components=tuple(_component_report(spec, raised is not None) for spec in specs),
            load_seconds=seconds,
            note="; ".join(_notes(plugin, "torch" in sys.modules and not had_torch, changed)),
        )
        return LoadedPlugin(report, found.owner, () if raised else specs)

    def _why_blocked(self, found: InstalledEntry) -> str:
        spellings = (found.owner.distribution, _normal(found.name))
        return next(filter(None, (each.refusal(spellings) for each in self._lists)), "")

    def _register(self, found: InstalledEntry) -> Any:
        if found.problem is not None:
            raise found.problem
        plugin = found.entry.load()
        hooks = dict(self._marked(plugin))
        if not hooks:
            lacking = "; ".join(_unmarked(plugin)) or f"expected a function {_HOOK}() marked with @hookimpl"
            raise PluginError(f"{found.entry.value} has no hook: {lacking}")
        for hook, function in hooks.items():
            if hook not in _hook_names():
                raise PluginError(
                    f"{found.entry.value}: {function} is marked with @hookimpl, but there is no hook "
                    f"{hook!r}.{nearest(hook, _hook_names())} Hooks: {', '.join(_hook_names())}"
                )
        first = self._manager.get_name(plugin)
        if first is not None:
            raise PluginError(_registered(found, first))
        self._manager.register(plugin, found.name)
        return plugin

    def _marked(self, plugin: Any) -> Iterator[tuple[str, str]]:
        """Yield (hook, attribute) for everything in `plugin` that is marked with `hookimpl`."""
        for attribute in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                continue
            if options.get("wrapper") or options.get("hookwrapper"):
                raise PluginError(f"{attribute} is a hook wrapper; plugins are asked one at a time")
            hook = options.get("specname") or attribute
            if hook in _hook_names() or not options.get("optionalhook"):
                yield hook, attribute

    def _ask(self, plugin: Any) -> tuple[ComponentSpec, ...]:
        """Call the hook of one plugin alone and check what it returns."""
        hook = getattr(self._manager.hook, _HOOK)
        functions = [each.function for each in hook.get_hookimpls() if each.plugin is plugin]
        specs: list[ComponentSpec] = []
        for function in functions:
            answer = function()
            if answer is None or isinstance(answer, (str, bytes, dict, ComponentSpec)):
                raise PluginError(f"{_HOOK}() returned {answer!r:.80}; return a list of ComponentSpec")
            specs.extend(answer)
        for spec in specs:
            if not isinstance(spec, ComponentSpec):
                raise PluginError(f"{_HOOK}() returned {spec!r:.80}, which is not a ComponentSpec")
        return tuple(specs)

    def _accept(self, found: InstalledEntry, specs: tuple[ComponentSpec, ...]) -> None:
        """Refuse specs of another contract, and a name that this distribution already offers."""
        names = [(str(spec.kind), spec.name, found.owner.distribution) for spec in specs]
        for spec, key in zip(specs, names, strict=True):
            if spec.contract != CONTRACT_VERSION:
                raise PluginError(_wrong_contract(found, spec))
            if key in self._declared or names.count(key) > 1:
                first = self._declared.get(key, "the same plugin")
                raise PluginError(f"{spec.kind}/{spec.name} is already offered by {first}; rename one")
        self._declared |= dict.fromkeys(names, found.name)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage meanwhile: imports make none, and looking for it takes a fifth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def installed_entries() -> list[InstalledEntry]:
    """Find every entry point of our group; of a distribution found twice, the first on the path."""
    declaring: dict[str, Distribution] = {}
    for each in distributions():
        if _declares(each):
            declaring.setdefault(canonicalize_name(_header(each, "Name")), each)
    found: list[InstalledEntry] = []
    for name, first in declaring.items():
        with suppress(PackageNotFoundError):  # its folder is called otherwise
            first = distribution(name)  # one that shadows it may declare nothing
        owner = Owner(name, _header(first, "Version"))
        try:
            found += [InstalledEntry(owner, entry) for entry in first.entry_points.select(group=PROJECT)]
        except Exception as problem:  # a malformed entry_points.txt raises whatever the parser trips on
            where = EntryPoint(name="entry_points.txt", value="", group=PROJECT)
            error = PluginError(f"its entry_points.txt cannot be parsed ({_one_line(problem)})")
            found.append(InstalledEntry(owner, where, error))
    return found


@cache
def host(lists: tuple[PluginList, ...] = ()) -> PluginHost:
    """Return this process's plugin host. `host.cache_clear()` forgets it (for tests).

    Args:
        lists: a run's own lists, which bound what is loaded beside the environment's.
    """
    return PluginHost([*_environment_lists(), *lists])


def plugins() -> list[PluginReport]:
    """Return a report of every installed plugin, sorted by distribution and entry."""
    return host().reports


def _registered(found: InstalledEntry, first: str) -> str:
    """Say that what an entry point names is registered by another one, and why that may be."""
    module, other = found.entry.module, first.partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    told = f"{found.entry.value} is already registered as {first}{f' ({file})' if file else ''}"
    if other == found.owner.distribution:
        return f"{told}; name it in one entry point"
    package = module.partition(".")[0]
    return (
        f"{told}: {other} and {found.owner.distribution} both have a {package!r}, of which Python finds one; "
        "uninstall one of them, or rename it there"
    )


def missing_modules(spec: ComponentSpec) -> list[str]:
    """Name the modules in `spec.requires` that are not installed, importing none of them."""
    return [name for name in spec.requires if not is_installed(name.partition(".")[0])]


def _declares(found: Distribution) -> bool:
    """Answer quickly, without parsing: most installed distributions are not plugins."""
    try:
        lines = (found.read_text("entry_points.txt") or "").splitlines()
    except UnicodeDecodeError as damaged:
        return f"[{PROJECT}]".encode() in damaged.object
    return any(line.strip() == f"[{PROJECT}]" for line in lines)


_FOLDER = re.compile(r"(?P<Name>.+?)-(?P<Version>.+?)(-.*)?\.(dist|egg)-info", re.IGNORECASE)


def _header(found: Distribution, name: Literal["Name", "Version"]) -> str:
    """Return one line of a distribution's metadata, of which the e-mail parser would read the whole text.

    An installation that was broken off has none: then the name of its folder tells.
    """
    with suppress(Exception):  # damaged metadata raise whatever their reader trips on
        for line in (found.read_text("METADATA") or "").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return value.strip()
            if not line:  # a description follows
                break
        if name in found.metadata:
            return str(found.metadata[name])
    folder = _FOLDER.fullmatch(getattr(getattr(found, "_path", None), "name", ""))
    return folder[name] if folder else "unknown"


@cache
def _hook_names() -> list[str]:
    marked = f"{PROJECT}_spec"
    return [name for name, value in vars(hookspecs).items() if hasattr(value, marked)]


def _unmarked(plugin: Any) -> Iterator[str]:
    """Describe functions that look like hooks but are not marked: they are never called."""
    for name, value in vars(plugin).items() if inspect.ismodule(plugin) else ():
        written_there = inspect.isfunction(value) and value.__module__ == plugin.__name__
        if written_there and name.startswith("janus_") and not hasattr(value, f"{PROJECT}_impl"):
            guess = "" if name in _hook_names() else nearest(name, _hook_names())
            yield f"{name}() is not marked with @hookimpl.{guess}"


def _notes(plugin: Any, imported_torch: bool, changed: list[str]) -> Iterator[str]:
    if imported_torch:
        yield "imports torch"
    if changed:
        yield f"changes {', '.join(changed)} when it is loaded (put back)"
    if plugin is not None:
        yield from _unmarked(plugin)


def _component_report(spec: ComponentSpec, failed: bool) -> ComponentReport:
    missing = missing_modules(spec)
    if spec.contract != CONTRACT_VERSION:
        status = f"wrong contract version (written for {spec.contract}, this is {CONTRACT_VERSION})"
    elif failed:
        status = "its plugin failed"
    elif missing:
        status = f"needs {spec.extra or ', '.join(missing)}"
    else:
        status = "ok"
    return ComponentReport(str(spec.kind), spec.name, spec.summary, status)


def _wrong_contract(found: InstalledEntry, spec: ComponentSpec) -> str:
    older = found.owner.distribution if spec.contract < CONTRACT_VERSION else canonicalize_name(PROJECT)
    return (
        f"wrong contract version: {spec.kind}/{spec.name} of {found.name} is written for contract "
        f"{spec.contract}, janus-plugins {__version__} offers {CONTRACT_VERSION}; "
        f"next: pip install --upgrade {older}"
    )


def _report(found: InstalledEntry, status: Literal["ok", "failed", "blocked"], **rest: Any) -> PluginReport:
    return PluginReport(found.owner.distribution, found.entry.name, found.owner.version, status, **rest)


def _cause(error: BaseException, owner: str) -> str:
    return "; ".join(filter(None, (_one_line(error), unmet_requirements(owner))))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    line = text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return line if len(line) <= _LONGEST_ERROR else line[: _LONGEST_ERROR - 3] + "..."


def is_installed(module: str) -> bool:
    """Answer whether a module can be found, without importing it (but for its parents)."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: loaded by hand, without a spec
        return module in sys.modules


def _normal(name: str) -> str:
    owner, colon, entry = name.strip().partition(":")
    return canonicalize_name(owner) + colon + entry


def _environment_lists() -> Iterator[PluginList]:
    variables: dict[str, Literal["block", "allow"]] = {BLOCK_VARIABLE: "block", ONLY_VARIABLE: "allow"}
    for variable, does in variables.items():
        names = tuple(name for name in os.environ.get(variable, "").split(",") if name.strip())
        if names:
            yield PluginList(does, names, variable)


@cache
def _warn_once(problem: str) -> None:
    # The lists of the environment count for every run's own host again.
    _log.warning(problem)


def _trace(message: str) -> None:
    if switched_on(TRACE_VARIABLE):
        print(f"janus-plugins: {message}", file=sys.stderr, flush=True)
