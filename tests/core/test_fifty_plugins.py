"""Fifty entry points, ten of them broken in ten ways: forty load, ten are reported, listing ends well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plugins import MODULE

GOOD = 40
BROKEN = {
    "syntax": ("def f(:\n", "SyntaxError"),
    "missing": ("import janus_no_such_library\n", "ModuleNotFoundError"),
    "torchless": ("raise RuntimeError('built for another torch')\n", "RuntimeError: built for another torch"),
    "exits": ("import sys\nsys.exit(0)\n", "SystemExit"),
    "asserts": ("assert False, 'unchecked'\n", "AssertionError: unchecked"),
    "attribute": ("import janus_plugins\njanus_plugins.no_such_name\n", "AttributeError"),
    "future": (MODULE.replace("contract=CONTRACT_VERSION", "contract=99"), "wrong contract version"),
    "twice": (MODULE.replace("    ]\n", "    ] * 2\n"), "already offered by the same plugin"),
    "misspelt": (
        MODULE.replace("def janus_components", "def janus_component"),
        "Did you mean 'janus_components'",
    ),
    "recurses": ("def f():\n    f()\nf()\n", "RecursionError"),
}
RESTLESS = {
    0: "print('hello from a plugin')\n",
    1: "import random\nrandom.seed(1)\n",
    2: "import os\nos.environ['OMP_NUM_THREADS'] = '64'\n",
    3: "import numpy\nnumpy.random.seed(1)\n",
    4: "import sys\nsys.stderr.write('a warning')\n",
}
STATE = """
import json, os, random, sys
import numpy
random.seed(7), numpy.random.seed(7)
before = random.getstate(), str(numpy.random.get_state()), dict(os.environ)
import janus_plugins
reports = janus_plugins.plugins()
after = random.getstate(), str(numpy.random.get_state()), dict(os.environ)
print(json.dumps({"same": before == after, "notes": {r.distribution: r.note for r in reports if r.note}}))
"""


def put(site: Path, name: str, source: str) -> None:
    """Lay out one installed distribution, as pip does."""
    module = f"janus_fifty_{name}"
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: janus-fifty-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[janus_plugins]\nmain = {module}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    for index in range(GOOD):
        put(site, f"good{index}", MODULE.format(index=index) + RESTLESS.get(index, ""))
    for index, (name, (source, _)) in enumerate(BROKEN.items()):
        put(site, name, source.format(index=100 + index) if "{index}" in source else source)
    return site


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def reports(site: Path) -> dict[str, Any]:
    done = run(site, "-m", "janus_plugins", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = {report["distribution"]: report for report in json.loads(done.stdout)}
    return {
        name.removeprefix("janus-fifty-"): report
        for name, report in found.items()
        if name.startswith("janus-fifty-")
    }


def test_forty_load_and_ten_are_reported(reports: dict[str, Any]) -> None:
    good = [name for name, report in reports.items() if report["status"] == "ok"]
    assert len(reports) == GOOD + len(BROKEN) == 50
    assert sorted(good) == sorted(f"good{index}" for index in range(GOOD))
    for name, (_, said) in BROKEN.items():
        assert reports[name]["status"] == "failed"
        assert said in reports[name]["error"]


def test_a_broken_one_is_an_error_only_where_it_is_asked_for(site: Path) -> None:
    word = "model.understanding.image.adapter={{use: {}}}"
    fine = run(site, "-m", "janus_plugins", "validate", "digits", "--set", word.format("mlp"))
    assert fine.returncode == 0, fine.stderr
    refused = run(
        site, "-m", "janus_plugins", "validate", "digits", "--set", word.format("janus-fifty-torchless/x")
    )
    assert refused.returncode == 3
    assert "built for another torch" in refused.stderr


def test_what_an_import_changes_for_everybody_is_put_back_and_said(site: Path) -> None:
    done = run(site, "-c", STATE)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["same"]
    assert "hello from a plugin" in done.stderr
    notes = {name.removeprefix("janus-fifty-"): note for name, note in told["notes"].items()}
    assert "random's state" in notes["good1"]
    assert "OMP_NUM_THREADS" in notes["good2"]
    assert "numpy's random state" in notes["good3"]
