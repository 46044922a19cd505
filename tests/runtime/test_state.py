from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import StoreError
from edge_sdk.core.records import ModelVersion, Segments, VersionId
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.runtime import arrays
from edge_sdk.runtime.state import MODEL, DeviceState

SPEC = FederationSpec(name="home", modalities=(ModalitySpec(name="acc", shape=(6,)),), classes=("a", "b"))
VERSION = ModelVersion(
    VersionId("ab" * 16, 3, "cd" * 16),
    {
        "encoder.acc": Segments(np.arange(5, dtype=np.float32), np.ones(2, np.float32), np.array([7])),
        "fusion": Segments(np.zeros(3, np.float32)),
    },
)


@pytest.fixture(params=["memory", "file"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> DeviceState:
    return DeviceState.open(tmp_path, "home", "d1") if request.param == "file" else DeviceState.in_memory("d1")


def test_arrays_come_back(state: DeviceState) -> None:
    memory = {"head.acc/weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64(3)}
    state.keep_memory("mba", memory)
    found = state.memory("mba")
    assert sorted(found) == sorted(memory)
    assert found["head.acc/weight"].dtype == np.float32
    assert np.array_equal(found["head.acc/weight"], memory["head.acc/weight"])
    assert state.memory("fedasync") == {}


def test_spec_and_model_come_back(state: DeviceState) -> None:
    assert state.spec() is None
    state.keep_spec(SPEC)
    state.keep_model(MODEL, VERSION, SPEC.shape_digest)
    assert state.spec() == SPEC
    found = state.model(MODEL, SPEC.shape_digest)
    assert found is not None
    assert found.id == VERSION.id
    assert sorted(found.tensors) == ["encoder.acc", "fusion"]
    assert np.array_equal(found.tensors["encoder.acc"].counters, [7])
    assert state.model(MODEL, "another shape") is None


@pytest.mark.parametrize("name", ["memory/mba.npz", "spec.json", MODEL])
def test_damaged_files_are_not_used(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    state = DeviceState.open(tmp_path, "home", "d1")
    state.keep_memory("mba", {"a": np.ones(3)})
    state.keep_spec(SPEC)
    state.keep_model(MODEL, VERSION, SPEC.shape_digest)
    path = tmp_path / "home" / name
    path.write_bytes(path.read_bytes()[:-30])
    found = {
        "memory/mba.npz": state.memory("mba"), "spec.json": state.spec(), MODEL: state.model(MODEL, SPEC.shape_digest),
    }[name]  # fmt: skip
    assert not found
    assert caplog.records


def test_same_arrays_same_bytes() -> None:
    a = {"x": np.arange(3.0), "y": np.zeros((2, 2), np.int64)}
    assert arrays.pack(a) == arrays.pack(dict(reversed(a.items())))


def test_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        arrays.pack({"x": np.array([{}], dtype=object)})


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    with pytest.raises(StoreError, match="damaged"):
        arrays.unpack((tmp_path / "x.npz").read_bytes())


def test_unwritable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="make room"):
        arrays.write(tmp_path / "file" / "x", b"1")
