"""A machine with TensorRT and CUDA that has neither: a stand-in for the package, a compiled one for CUDA's runtime."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from export import cuda

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def missing() -> str:
    """Returns why there can be none here; "": there can."""
    return "" if shutil.which("gcc") else "gcc is not installed: apt install gcc"


class VirtualTensorRt:
    """The stand-in, for this process and the build's.

    Args:
        folder: an empty folder of the test.
        patch: undoes everything.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        library = folder / "libcudart.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "cudart_shim.c"], check=True)
        stand_in = str(HERE / "tensorrt_stand_in")
        self._patch = patch
        self._builds = folder / "builds"
        self.library = ctypes.CDLL(str(library))
        self.library.shim_live.restype = ctypes.c_long
        patch.setitem(sys.modules, "tensorrt", _module(HERE / "tensorrt_stand_in" / "tensorrt.py"))
        patch.setenv("PYTHONPATH", os.pathsep.join((stand_in, str(ROOT))))
        patch.setenv("TENSORRT_BUILDS", str(self._builds))
        patch.setattr(cuda, "CUDART", (str(library),))
        cuda._runtime.cache_clear()

    def goes_wrong(self, what: str) -> None:
        """Lets something fail from now on; "": nothing."""
        self._patch.setenv("TENSORRT_STAND_IN", what)

    def board(self, name: str) -> None:
        """Moves to another board."""
        self._patch.setenv("TENSORRT_BOARD", name)

    def cuda_fails(self, call: str) -> None:
        """Lets a call of CUDA's runtime fail from now on."""
        self._patch.setenv("CUDART_FAILS", call)  # seen by getenv in this process too

    @property
    def builds(self) -> int:
        """Engines that were begun so far."""
        return self._builds.read_text().count("build") if self._builds.exists() else 0

    @property
    def builders(self) -> list[tuple[int, int]]:
        """Process and niceness of every build so far."""
        text = self._builds.read_text() if self._builds.exists() else ""
        return [(int(line.split()[1]), int(line.split()[2])) for line in text.splitlines()]

    @property
    def buffers(self) -> int:
        """Pieces of memory that are held."""
        return int(self.library.shim_live())


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


__all__ = ["VirtualTensorRt", "missing"]
