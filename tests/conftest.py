"""What the whole suite shares: which tests can run where torch is not installed."""

from __future__ import annotations

from importlib.util import find_spec

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
        "contract/test_methods.py",
        "contract/test_stores.py",
    ),
}

collect_ignore_glob = [
    pattern
    for library, places in NEEDS.items()
    if find_spec(library) is None
    for place in places
    for pattern in ((place,) if place.endswith(".py") else (f"{place}/*",))
]
