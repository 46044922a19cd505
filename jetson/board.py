"""Which board, which release: from files under a root, so that a recorded tree is a board.

Files before tables: what the board says is installed wins over what its release should have brought.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edge_sdk.core.boards import Facts
from edge_sdk.core.sysfs import Tree, memory

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MODULE = re.compile(r"p\d{4}-\d{4}")
_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True, slots=True)
class Table:
    """`boards.toml`."""

    modules: dict[str, str]  # module number → name
    socs: dict[str, str]  # SoC → compute capability
    releases: dict[str, dict[str, str]]  # L4T → what it brings
    generations: dict[str, str]  # first number of L4T → generation of JetPack


@cache
def table() -> Table:
    """Returns the table of known boards and releases."""
    plain: dict[str, Any] = tomllib.loads(Path(__file__).with_name("boards.toml").read_text(encoding="utf-8"))
    return Table(**plain)


def is_jetson(tree: Tree) -> bool:
    """Says whether this is a Jetson: by its device tree, or where a container hides it, by L4T's release file."""
    return _soc(tree) != "" or tree.exists("etc/nv_tegra_release") or _l4t(tree) != ""


def identify(tree: Tree) -> Facts:
    """Returns what the board is."""
    soc, l4t = _soc(tree), _l4t(tree)
    module = next((m for m in _modules(tree) if m in table().modules), "")
    brought = release(l4t)
    known = memory(tree)
    jetpack = brought.get("jetpack") or generation(l4t)
    return Facts(
        name=_name(tree, module),
        soc=soc,
        capability=table().socs.get(soc, ""),
        system=f"L4T {l4t}" if l4t else "",
        release=f"JetPack {jetpack}" if jetpack else "",
        cuda=_cuda(tree) or brought.get("cuda", ""),
        tensorrt=_library(tree, r"libnvinfer\d+") or brought.get("tensorrt", ""),
        cudnn=_library(tree, r"libcudnn\d+(-cuda-\d+)?") or brought.get("cudnn", ""),
        memory_mb=known.total_mb if known else None,
        warnings=tuple(_warnings(soc=soc, l4t=l4t, module=module, modules=_modules(tree))),
    )


def release(l4t: str) -> dict[str, str]:
    """Returns what a release brought; empty where it is not known."""
    parts = l4t.split(".")
    for length in range(len(parts), 1, -1):
        found = table().releases.get(".".join(parts[:length]))
        if found:
            return found
    return {}


def generation(l4t: str) -> str:
    """Returns the generation of JetPack that an L4T release belongs to: "6"; "" where it is not known."""
    return table().generations.get(l4t.partition(".")[0], "")


def _warnings(*, soc: str, l4t: str, module: str, modules: tuple[str, ...]) -> list[str]:
    told = []
    if not module:
        told.append(f"module {modules[0]} is not known" if modules else "the device tree names no module")
    if not l4t:
        told.append("no L4T release was found; in a container, mount /etc/nv_tegra_release")
    elif not release(l4t):
        near = generation(l4t)
        told.append(f"L4T {l4t} is not known; {f'taken for JetPack {near}' if near else 'no advice is given for it'}")
    if soc and soc not in table().socs:
        told.append(f"{soc} is not known; the compute capability of its GPU is asked of torch alone")
    return told


def _compatible(tree: Tree) -> tuple[str, ...]:
    return tree.strings("proc/device-tree/compatible")


def _modules(tree: Tree) -> tuple[str, ...]:
    """Returns the module numbers of `compatible`, the most special first; carriers are among them."""
    return tuple(dict.fromkeys(n for text in _compatible(tree) for n in _MODULE.findall(text)))


def _soc(tree: Tree) -> str:
    return next((m[0] for text in _compatible(tree) if (m := re.search(r"tegra\d{3}$", text))), "")


def _name(tree: Tree, module: str) -> str:
    name = table().modules.get(module) or tree.text("proc/device-tree/model") or "Jetson"
    return f"{name} Super" if any(text.endswith("-super") for text in _compatible(tree)) else name


def _l4t(tree: Tree) -> str:
    """Returns "36.4.3"; a container often lacks the release file, but has the package."""
    match = _RELEASE.search(tree.text("etc/nv_tegra_release") or "")
    if match:
        return f"{match[1]}.{match[2]}"
    return _numbers(installed(tree).get("nvidia-l4t-core", ""))


def _cuda(tree: Tree) -> str:
    try:
        plain = json.loads(tree.text("usr/local/cuda/version.json") or "{}")
        told = str(plain["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        told = (tree.text("usr/local/cuda/version.txt") or "").removeprefix("CUDA Version ")
    return ".".join(_numbers(told).split(".")[:2])


def _library(tree: Tree, pattern: str) -> str:
    found = (version for name, version in installed(tree).items() if re.fullmatch(pattern, name))
    return next((_numbers(version) for version in found), "")


def installed(tree: Tree) -> dict[str, str]:
    """Returns Debian package → version of what dpkg has installed."""
    found = {}
    for block in (tree.text("var/lib/dpkg/status") or "").split("\n\n"):
        keys = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(" "))
        if keys.get("Status", "").endswith(" installed") and "Package" in keys:
            found[keys["Package"]] = keys.get("Version", "")
    return found


def _numbers(version: str) -> str:
    match = _NUMBERS.match(version)
    return match[0] if match else ""


__all__ = ["Table", "generation", "identify", "installed", "is_jetson", "release", "table"]
