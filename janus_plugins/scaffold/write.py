"""Write a plugin package from templates: a passing start for a component of any kind.

The templates are files under `templates/`; `$name`, `$package` and a few more are filled in.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template

from janus_plugins.core.catalogue import catalogue
from janus_plugins.core.errors import RunFileError
from janus_plugins.core.kinds import Kind
from janus_plugins.core.outputs import partial_folder, writing
from janus_plugins.core.specs import CONTRACT_VERSION
from janus_plugins.core.suggest import nearest

TEMPLATES = Path(__file__).parent / "templates"

SUMMARIES = {
    Kind.UNDERSTANDING_ENCODER: "pictures to patch features",
    Kind.GENERATION_ENCODER: "pictures to codes and back",
    Kind.ADAPTER: "an MLP from features to the language model's width",
    Kind.HEAD: "an MLP over codes",
    Kind.SOURCE: "a text task, words to be reversed",
    Kind.LANGUAGE_MODEL: "a small GPT",
    Kind.EVALUATION_TASK: "the share of an answer's words that are said",
    Kind.CALLBACK: "an end to stages whose loss stays low",
}

BUILDS = {
    Kind.SOURCE: "opens it",
    Kind.EVALUATION_TASK: "is the task",
    Kind.CALLBACK: "is the callback",
}
"""What the module of a component's factory does, where it is no `nn.Module`."""

SERIES_SUMMARIES = {
    Kind.UNDERSTANDING_ENCODER: "recordings of any length to patch features",
    Kind.GENERATION_ENCODER: "recordings to codes and back",
}
"""Kinds that have a modality, and what is written for another one than pictures: values over time."""

_FILES = {
    "pyproject.toml": "common/pyproject.toml",
    "README.md": "common/README.md",
    ".gitignore": "common/gitignore",
    ".github/workflows/test.yml": "common/test.yml",
    "$package/__init__.py": "common/__init__.py",
    "$package/spec.py": "$templates/spec.py",
    "$package/model.py": "$templates/model.py",
    "tests/test_contract.py": "common/test_contract.py",
}
"""Path in the package -> path of its template."""

_SERIES_FILES = {
    "$package/reading.py": "common/reading.py",
    "$package/processor.py": "$templates/processor.py",
}

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MODALITY = re.compile(r"[a-z][a-z0-9_]*")


def write_package(name: str, kind: str, out: Path, modality: str = "image") -> Path:
    """Write a package for one component, at once or not at all, and return its folder, `out/name`.

    Args:
        name: of the distribution and of the component: lower case, digits, single hyphens (an underscore
            becomes one).
        kind: a kind, as YAML spells it.
        out: the folder to make the package's folder in.
        modality: what an encoder reads or makes. For any but "image" it is one of recordings, values over
            time [time, channels], with a processor of its own.

    Raises:
        RunFileError: the name, the kind or the modality cannot be used, or the folder is not empty or cannot
            be written.
    """
    name = name.replace("_", "-")
    values = _values(name, _kind(kind), modality)
    taken = [one for one in catalogue().entries() if (one.spec.kind, one.spec.name) == (_kind(kind), name)]
    if taken:
        raise RunFileError(
            f"{taken[0].owner.distribution} offers {_named(_kind(kind))} {name!r} already; choose another "
            f"name, e.g. my-{name}"
        )
    folder = out / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFileError(f"{folder} exists already; choose another name, or another folder with --out")
    if folder.resolve() == Path.cwd():
        raise RunFileError(f"{folder} is where this program runs; run it in the folder above, without --out")
    files = _FILES if modality == "image" else {**_FILES, **_SERIES_FILES}
    with writing(folder), partial_folder(folder) as partial:
        for path, template in files.items():
            target = partial / Template(path).substitute(values)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_filled(Template(template).substitute(values), values), encoding="utf-8")
    return folder


def next_steps(folder: Path) -> str:
    """Say what to do with a new package."""
    return (
        f"wrote {folder}\n"
        f"next:  cd {folder}\n"
        '       pip install -e ".[test]"\n'
        "       pytest\n"
        f"       janus-plugins check {folder.name}"
    )


def _kind(kind: str) -> Kind:
    spelt = kind.replace("-", "_")
    if spelt not in list(Kind):
        names = [str(each) for each in Kind]
        raise RunFileError(f"there is no kind {kind!r}.{nearest(spelt, names)} Kinds: {', '.join(names)}")
    return Kind(spelt)


def _values(name: str, kind: Kind, modality: str) -> dict[str, str]:
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package):
        raise RunFileError(
            f"{name!r} cannot name a package: use lower-case words and digits joined by single hyphens, "
            "beginning with a letter, e.g. my-encoder"
        )
    if package in sys.stdlib_module_names or find_spec(package) is not None:
        raise RunFileError(f"a module {package!r} is installed already; choose another name, e.g. my-{name}")
    series = modality != "image"
    if series:
        _check_modality(kind, modality)
    values = {
        "name": name,
        "package": package,
        "kind": str(kind),
        "templates": f"series_{kind}" if series else str(kind),
        "modality": modality,
        "words": str(kind).replace("_", " "),
        "title": "".join(word.capitalize() for word in name.split("-")),
        "summary": (SERIES_SUMMARIES if series else SUMMARIES)[kind],
        "builds": BUILDS.get(kind, "is the `nn.Module`"),
        # As a number: the name would mean whatever version is installed later.
        "contract": str(CONTRACT_VERSION),
    }
    return {
        **values,
        "usage": _filled(f"{values['templates']}/usage.yaml", values),
        "processing": _filled("common/processing.md", values) if series else "",
    }


def _named(kind: Kind) -> str:
    """Return a kind with its article: "an adapter"."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _check_modality(kind: Kind, modality: str) -> None:
    if kind not in SERIES_SUMMARIES:
        have = ", ".join(str(each) for each in SERIES_SUMMARIES)
        raise RunFileError(f"{_named(kind)} has no modality of its own; --modality is for {have}")
    if not _MODALITY.fullmatch(modality) or modality == "text":
        raise RunFileError(
            f"{modality!r} cannot name a modality: use lower-case letters, digits and underscores, beginning "
            "with a letter, e.g. heart_rate"
        )


def _filled(template: str, values: dict[str, str]) -> str:
    text = (TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(values)
