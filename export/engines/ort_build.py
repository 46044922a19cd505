"""The child that lets ONNX Runtime's TensorRT provider build an engine into its cache (`export.builds`).

A session is made here as the device makes it afterwards, with the same graph and options, so that the device's own
takes the engine from the folder in place of building it beside the predictions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edge_sdk.core.errors import EngineError
from export import builds
from export.engines import ort


def main(folder: Path) -> int:
    """Builds what the folder orders."""
    builds.begin()
    order = json.loads((folder / builds.ORDER).read_text(encoding="utf-8"))
    builds.say(progress="TensorRT's provider builds")
    options = ort.session_options(order["threads"], optimise=order["optimise"])
    try:
        ort.session_of((folder / builds.MODEL).read_bytes(), options, tuple(order["providers"]), order["special"])
    except MemoryError as error:
        builds.say(error=f"out of memory: {error}; add swap, or make max_batch smaller")
        return 1
    except EngineError as error:
        builds.say(error=str(error))
        return 1
    (folder / ort.BUILT).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

__all__ = ["main"]
