"""The child that lets ONNX Runtime's TensorRT provider build an engine into its cache (`export.builds`).

A session is made here as the device makes it afterwards, with the same graph and options, so that the device's own
takes the engine from the folder in place of building it beside the predictions.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from export import builds
from export.engines import ort


def main(folder: Path) -> int:
    """Builds what the folder orders."""
    return builds.serve(partial(_build, folder))


def _build(folder: Path) -> None:
    order = json.loads((folder / builds.ORDER).read_text(encoding="utf-8"))
    builds.say(progress="TensorRT's provider builds")
    options = ort.session_options(order["threads"], optimise=order["optimise"])
    ort.session_of((folder / builds.MODEL).read_bytes(), options, tuple(order["providers"]), order["special"])
    (folder / ort.BUILT).touch()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

__all__ = ["main"]
