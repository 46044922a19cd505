"""What the whole suite shares: which tests can run where torch is not installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The machine that runs the tests may be busy with others' work: how long an example takes says nothing.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Folders and files whose tests need more than a bare device agent has, by the library they need. Where the library is
# missing they are not even collected, because the code that they import imports it.
NEEDS: dict[str, tuple[str, ...]] = {
    "torch": (
        "bench",
        "coordinator",
        "e2e",
        "export",
        "learn",
        "methods",
        "models",
        "simulation",
        "contract/test_engines.py",
        "contract/test_federations.py",
        "contract/test_methods.py",
        "contract/test_stores.py",
    ),
}

# Tests of these places wait for devices, brokers and programs in real time. Where the suite runs on several workers
# they stay on one of them, so that they take the processor from nobody who has to be on time.
REAL_TIME = (
    "contract/test_drivers.py", "contract/test_transports.py", "e2e", "hardware", "runtime", "sensors", "transport",
)  # fmt: skip

collect_ignore_glob = [
    pattern
    for library, places in NEEDS.items()
    if find_spec(library) is None
    for place in places
    for pattern in ((place,) if place.endswith(".py") else (f"{place}/*",))
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not beside the tests of hardware: pytest asks for options before it looks into folders."""
    group = parser.getgroup("hardware")
    group.addoption("--board", type=Path, help="tests/hardware: a device's TOML; its sensors replace the virtual ones")
    group.addoption("--soak", type=float, help="tests/hardware: how long the soak takes, s; on virtual devices 3")
    group.addoption("--report", type=Path, help="tests/hardware: where the HTML report goes")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests that run in real time together, where there are workers to keep them apart."""
    if config.pluginmanager.hasplugin("xdist"):
        places = tuple(str(Path(__file__).parent / place) for place in REAL_TIME)
        for item in items:
            if str(item.path).startswith(places):
                item.add_marker(pytest.mark.xdist_group("real time"))


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """The commands set up the root logger, as programs may; a test that runs one must not silence the next test."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
