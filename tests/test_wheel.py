"""The wheel holds what an installed package needs: configs, templates, the entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_installed_wheel_finds_the_shipped_runs(tmp_path):
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(ROOT)], check=True)
    assert (tmp_path / "site" / "janus_plugins" / "configs" / "janus_1.3b.yaml").is_file()
    code = (
        "import janus_plugins; from janus_plugins.door import plan; "
        "print(janus_plugins.__file__); print(plan('digits').run.name, plan('janus_pro_7b').run.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    where, names = done.stdout.split("\n")[:2]
    assert where.startswith(str(tmp_path))
    assert names == "digits janus_pro_7b"
