"""The machine as `edge-sdk doctor` sees it: its files, its Python packages, and what only running code can tell.

All three may come from a recorded tree. Packages are read from their metadata without importing them; what a program
must run to know (does a kernel start, which providers load) is a `Probe`, recorded as `edge-sdk/machine.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from edge_sdk.core.errors import BoardError
from edge_sdk.core.sysfs import Tree

RECORD = "edge-sdk/machine.json"  # in a recorded tree
SITES = (  # in a recorded tree, in the order in which an environment of our own searches them
    "opt/edge-sdk/venv/lib/python3.*/site-packages",
    "usr/local/lib/python3.*/dist-packages",
    "usr/lib/python3.*/dist-packages",
    "usr/lib/python3/dist-packages",
)


@dataclass(frozen=True, slots=True)
class Package:
    """One installed distribution."""

    name: str  # normalised: lower case, "-" for "_"
    version: str
    imports: frozenset[str]  # top-level import names that it brings
    place: str  # the folder it lies in


@dataclass(frozen=True, slots=True)
class Probe:
    """What only running code can tell; None: it was not tried."""

    torch_arch: tuple[str, ...] | None = None  # what torch's kernels were compiled for: "sm_87"
    torch_numpy: str | None = None  # "" where torch and NumPy work together, else the error
    capability: str | None = None  # of the GPU: "8.7"; "": torch sees none
    kernel: str | None = None  # "" where a matrix product on the GPU was right, else the error
    providers: tuple[str, ...] | None = None  # of ONNX Runtime
    gstreamer: bool | None = None  # OpenCV was built with GStreamer


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at."""

    tree: Tree
    python: str  # "3.10.12"
    arch: str  # "aarch64"
    venv: str  # the environment's folder; "": the system's Python
    user: str
    groups: frozenset[str]  # of the user
    state_dir: str  # where a device keeps its state
    disk_free_mb: float | None  # there
    packages: tuple[Package, ...]  # in the order in which they are found: the first of a name is the one imported
    writable: bool = True  # the user may write to state_dir
    kernel: str = ""  # "5.15.148-tegra"
    torch_cuda: str = ""  # CUDA that torch was built for, "12.6"; "": none, or no torch
    probe: Probe = field(default_factory=Probe)

    @property
    def pip(self) -> str:
        """The pip of the environment, as one types it."""
        return f"{self.venv}/bin/pip" if self.venv else "python3 -m pip"

    def package(self, name: str) -> Package | None:
        """Returns an installed distribution by its name."""
        return next((p for p in self.packages if p.name == name), None)

    def bringing(self, name: str) -> list[Package]:
        """Returns the distributions that install an import name, the one imported first."""
        return [p for p in self.packages if name in p.imports]


def packages(places: Iterable[Path]) -> tuple[Package, ...]:
    """Returns the distributions in some folders."""
    folders = [str(place) for place in places]
    found = [
        Package(normal(dist.metadata["Name"]), dist.version, _imports(dist), folder)
        for folder in folders
        for dist in distributions(path=[folder])
        if "Name" in dist.metadata  # a folder that an uninstall left behind has no metadata
    ]
    return tuple(sorted(found, key=lambda p: (folders.index(p.place), p.name)))


def normal(name: str) -> str:
    """Returns a distribution's name as it is compared."""
    return str(name).lower().replace("_", "-").replace(".", "-")


def _imports(dist: Distribution) -> frozenset[str]:
    told = (dist.read_text("top_level.txt") or "").split()
    listed = {
        file.parts[0].partition(".")[0] if len(file.parts) == 1 else file.parts[0]
        for file in dist.files or ()
        if file.suffix in (".py", ".so", ".pyi") or len(file.parts) > 1
    }
    return frozenset(told) | {name for name in listed if name.isidentifier()}


def torch_cuda(places: Iterable[Path]) -> str:
    """Returns the CUDA version that torch was built for, from its `version.py`, without importing it."""
    for place in places:
        text = Tree(place).text("torch/version.py")
        for line in (text or "").splitlines():
            name, _, value = line.partition("=")
            if name.partition(":")[0].strip() == "cuda":
                return value.strip().strip("'\"").replace("None", "")
        if text is not None:
            return ""
    return ""


def recorded(root: Path) -> Machine:
    """Returns the machine that a tree was recorded on.

    Raises:
        BoardError: there is no such folder, or its record is broken.
    """
    if not root.is_dir():
        raise BoardError(f"{root}: no such folder; a recorded board is a folder that `edge-sdk doctor --record` wrote")
    tree = Tree(root)
    plain = _record(tree, root)
    places = [root / name for pattern in SITES for name in tree.find(pattern)]
    return Machine(
        tree=tree,
        python=str(plain.get("python", "")),
        arch=str(plain.get("arch", "aarch64")),
        venv=str(plain.get("venv", "")),
        user=str(plain.get("user", "")),
        groups=frozenset(map(str, plain.get("groups", ()))),
        state_dir=str(plain.get("state_dir", "/var/lib/edge-sdk")),
        disk_free_mb=plain.get("disk_free_mb"),
        packages=packages(places),
        kernel=str(plain.get("kernel", "")),
        torch_cuda=torch_cuda(places),
        probe=_probe(plain.get("probe", {}), root),
    )


def _record(tree: Tree, root: Path) -> Mapping[str, Any]:
    text = tree.text(RECORD)
    if text is None:
        return {}
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise BoardError(f"{root / RECORD}: not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise BoardError(f"{root / RECORD}: expected an object, found a {type(plain).__name__}")
    return plain


def _probe(plain: Mapping[str, Any], root: Path) -> Probe:
    unknown = set(plain) - {f.name for f in fields(Probe)}
    if unknown:
        raise BoardError(f"{root / RECORD}: probe: unknown key {sorted(unknown)[0]!r}")
    return probe_of(plain)


def probe_of(plain: Mapping[str, Any]) -> Probe:
    """Returns the probe that JSON holds."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Probe(**values)


def as_record(machine: Machine) -> dict[str, Any]:
    """Returns what `recorded` reads besides the tree's own files."""
    return {
        "python": machine.python, "arch": machine.arch, "venv": machine.venv, "user": machine.user,
        "groups": sorted(machine.groups), "state_dir": machine.state_dir, "disk_free_mb": machine.disk_free_mb,
        "kernel": machine.kernel, "probe": asdict(machine.probe),
    }  # fmt: skip


__all__ = [
    "RECORD", "SITES", "Machine", "Package", "Probe", "as_record", "normal", "packages", "probe_of",
    "recorded", "torch_cuda",
]  # fmt: skip
