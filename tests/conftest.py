"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "plugins"
LONGEST = [
    "test_readme",
    "test_kernels",
    "test_benchmarks",
    "test_ranks",
    "test_few_rows",
    "conversion.test_training",
]
"""Files that take a minute or more. They begin first, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first and leave the others as they are."""

    def place(item: pytest.Item) -> int:
        name = item.nodeid.split("::")[0].removesuffix(".py").replace("/", ".")
        return next((k for k, end in enumerate(LONGEST) if name.endswith(f".{end}")), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def plugin_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build every distribution under tests/plugins and install the wheels into one folder, offline."""
    from hatchling.builders.wheel import WheelBuilder

    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    for project in sorted(PLUGINS.iterdir()):
        if (project / "pyproject.toml").is_file():
            list(WheelBuilder(str(project)).build(directory=str(wheels), versions=["standard"]))
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    command += ["--disable-pip-version-check", "--target", str(site), *map(str, sorted(wheels.glob("*.whl")))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return site


@pytest.fixture
def no_file_beyond() -> Callable[[int], AbstractContextManager[None]]:
    """Let no file of this process grow beyond some bytes in a `with` block, as if the disk were full."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    return limited
