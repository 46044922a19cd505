"""Text from a file that is read to a prediction: driver, window, tokens, reservoir, BERT, training, engine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core import registry
from edge_sdk.core.clock import NS, VirtualClock, run_virtual
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.interfaces import mask_row
from edge_sdk.core.records import Chunk, LatePart, RoundData, Window
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModelSpec, TrainingSpec, WindowSpec
from edge_sdk.methods.base import find
from edge_sdk.streams.pipeline import registered_driver
from edge_sdk.streams.reservoir import Reservoir
from edge_sdk.streams.window import Windower
from tests.helpers import learning
from tests.helpers.tokenizer_folder import WORDS, save_tokenizer

SAID = ("one three", "two", "three one", "two three two")  # class 0 says "one", class 1 says "two"
LAYERS: dict[str, Any] = {
    "model_type": "bert", "vocab_size": len(WORDS), "max_position_embeddings": 8, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.3,
}  # fmt: skip


def spec_of(tokenizer: Path) -> FederationSpec:
    note = {
        "name": "note", "shape": [2, 8], "feature": {"name": "text", "tokenizer": str(tokenizer), "length": 8},
        "encoder": "bert", "encoder_config": {"config": LAYERS},
    }  # fmt: skip
    return FederationSpec(
        name="t", modalities=(note,), classes=("first", "second"), window=WindowSpec(length_s=1.0, hop_s=1.0),
        method=MethodSpec(name="fedasync"), model=ModelSpec(feature_dim=8),
        training=TrainingSpec(lr=0.05, momentum=0.9, epochs=15, batch_size=8),
    )  # fmt: skip


def read(path: Path) -> list[Chunk]:
    """What the driver delivers of a file, a line a second."""
    driver = registered_driver("text")("note", {"path": str(path), "follow": False, "length": 0})
    driver.open()
    chunks: list[Chunk] = []
    with suppress(EOFError):
        while True:
            chunk = driver.read(0.0)
            if chunk is not None:
                chunks.append(replace(chunk, t_ns=len(chunks) * NS))
    driver.close()
    return chunks


def windows_of(spec: FederationSpec, chunks: list[Chunk]) -> list[Window | LatePart]:
    windower = Windower(spec)
    windower.prepare()
    windower.advance(0)
    items = []
    for chunk in chunks:
        items += windower.advance(chunk.t_ns)
        windower.push(chunk)
    return items + windower.advance(chunks[-1].t_ns + 2 * NS)


def kept(spec: FederationSpec, items: list[Window | LatePart], labels: list[int]) -> RoundData:
    """What a reservoir makes of the windows and their labels."""

    async def main(clock: VirtualClock) -> RoundData:
        reservoir = Reservoir(spec, ReservoirConfig(min_windows=4), clock, None)
        for item in items:
            assert isinstance(item, Window)
            reservoir.add(item)
            reservoir.label(item.index, labels[item.index])
        rounds = await reservoir.freeze(1, spec.modality_names)
        assert await rounds.next_arrival() is not None
        return rounds.data(spec.modality_names)

    return run_virtual(main)


def test_lines_are_learnt_and_predicted(tmp_path: Path) -> None:
    spec = spec_of(save_tokenizer(tmp_path / "tokenizer"))
    order = np.random.default_rng(0).integers(0, len(SAID), 48)
    (tmp_path / "notes.txt").write_text("".join(f"{SAID[i]}\n" for i in order), encoding="utf-8")
    items = windows_of(spec, read(tmp_path / "notes.txt"))
    assert [item.index for item in items] == list(range(48))
    data = kept(spec, items, [int(i) % 2 for i in order])
    assert data.x["note"].shape == (48, 2, 8)

    result, _ = learning.train_round(spec, ("note",), data=data)
    engine = registry.load("engines", "torch")(spec, find("fedasync").needs, result.tensors)
    (tmp_path / "new.txt").write_text("two two\none one\nthree two\n", encoding="utf-8")
    predicted = []
    for item in windows_of(spec, read(tmp_path / "new.txt")):
        assert isinstance(item, Window)
        x = {m: a[None] for m, a in item.data.items()}
        predicted.append(int(engine.run(x, mask_row(tuple(x), spec.modality_names)).argmax()))
    assert predicted == [1, 0, 1]
