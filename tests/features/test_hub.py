"""A hub that cannot be reached, met by the real library: one sentence with the name and the way by a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.brokers import dead_port

pytest.importorskip("transformers", reason="transformers is not installed (extra `text`)")

ROOT = Path(__file__).parents[2]
NAME = "someone/small-words"
# The library waits between its attempts, a minute in all.
QUICK = "import time; time.sleep = lambda seconds: None\nfrom edge_sdk.core.errors import ConfigError\n"
TOKENIZER = "from edge_sdk.features import load_tokenizer\nmake = lambda: load_tokenizer({name!r}, 'here')"
ENCODER = """
from edge_sdk.core.spec import ModalitySpec
from edge_sdk.models.transformer import Bert
make = lambda: Bert(ModalitySpec(name="text", shape=(2, 8)), 4, source={name!r})
"""


@pytest.mark.parametrize(("what", "where"), [(TOKENIZER, "here"), (ENCODER, "modality text: encoder_config.source")])
def test_a_hub_out_of_reach_names_the_model_and_the_way_by_a_folder(tmp_path: Path, what: str, where: str) -> None:
    if what is ENCODER:
        pytest.importorskip("torch", reason="encoders need torch")
    code = QUICK + what.format(name=NAME) + "\ntry:\n    make()\nexcept ConfigError as error:\n    print(error)"
    with dead_port() as port:
        env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True
        )
    said = done.stdout.strip()
    assert said.startswith(f"{where}: {NAME!r} is no folder and cannot be had from the hub: "), said
    assert f"run: hf download {NAME} --local-dir small-words" in said
    assert "give its path (./small-words) in the place of the name" in said
