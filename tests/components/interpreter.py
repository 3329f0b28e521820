"""Run a file's tests in Triton's interpreter, which needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys


def run_interpreted(file: str, passing: int) -> None:
    """Expect so many tests to pass in a new process: Triton decides when it is imported whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{passing} passed" in done.stdout
