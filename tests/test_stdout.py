"""Standard output has a command's answer alone, whatever plugins and libraries print beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOUD = """
import ctypes, os, subprocess
import janus_plugins as jp


def shout():
    print("loud: print")
    os.write(1, b"loud: descriptor\\n")
    ctypes.CDLL(None).printf(b"loud: C\\n")
    subprocess.run(["echo", "loud: process"], check=True)


class Config(jp.ComponentConfig):
    def facts(self, source, model):
        shout()
        return jp.AdapterFacts("features", source.width, model.width)


@jp.hookimpl
def janus_components():
    shout()
    return [jp.ComponentSpec(kind=jp.Kind.ADAPTER, name="loud", config=Config, factory="janus_loud:build", contract=1)]


def build(config, facts):
    import torch

    shout()
    return torch.nn.Linear(facts.in_width, facts.out_width)
"""
WAYS = {"loud: print", "loud: descriptor", "loud: C", "loud: process"}
SAYS = """
from janus_plugins.stdout import set_aside
import janus_loud

print("before")
with set_aside() as say:
    janus_loud.shout()
    say("an answer, ", nl=False)
    janus_loud.shout()
    say("in two pieces")
    janus_loud.shout()
print("after")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "janus_loud.py").write_text(LOUD)
    info = tmp_path / "janus_loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: janus-loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[janus_plugins]\nmain = janus_loud\n")
    return tmp_path


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHON": sys.executable}
    done = subprocess.run(words, cwd=site, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("words", [["plugins"], ["explain", "digits", "--set", "model.{}={{use: loud}}"]])
def test_json_stays_json_beside_a_plugin_that_prints(words: list[str], site: Path) -> None:
    adapter = "understanding.image.adapter"
    done = run(
        site, sys.executable, "-m", "janus_plugins", *(word.format(adapter) for word in words), "--json"
    )
    assert json.loads(done.stdout)
    assert set(done.stderr.splitlines()) >= WAYS


def test_pieces_of_an_answer_come_between(site: Path) -> None:
    done = run(site, sys.executable, "-c", SAYS)
    assert done.stdout == "before\nan answer, in two pieces\nafter\n"
    assert sorted(done.stderr.splitlines()) == sorted([*WAYS] * 3)


@pytest.mark.parametrize(
    ("closed", "told"), [(">&-", ""), ("2>&-", "before\nan answer, in two pieces\nafter\n")]
)
def test_a_closed_descriptor_is_left_closed(closed: str, told: str, site: Path) -> None:
    script = SAYS.replace("janus_loud.shout()", "print(1)")
    done = run(site, "sh", "-c", f'exec "$PYTHON" -c "{script.replace(chr(34), chr(39))}" {closed}')
    assert (done.stdout, done.stderr) == (told, "")
