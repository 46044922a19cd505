"""The demo's parts: recordings, folders, ports, and the folding of events into numbers."""

import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from coordinator.demo import recordings, report, view
from coordinator.demo.processes import Processes, claim_port
from coordinator.demo.run import MARK, empty_folder
from coordinator.demo.state import DemoState, DeviceState
from edge_sdk import datasets
from edge_sdk.core.errors import ConfigError, EdgeError
from edge_sdk.recording import Reader


def test_every_row_becomes_one_labelled_segment_of_each_modality(tmp_path: Path) -> None:
    data = datasets.select("uci_har").take(np.arange(20))
    recordings.write(data, tmp_path / "r", seed=1)
    reader = Reader(tmp_path / "r")
    labels = reader.labels()
    order = np.random.default_rng(1).permutation(20)
    assert [name for _, _, name in labels] == [data.classes[data.y[row]] for row in order]
    for m in data.modalities:
        chunks = list(reader.chunks(m))
        assert all(c.gap_before for c in chunks)
        assert [c.t_ns for c in chunks] == [start for start, _, _ in labels]
        assert np.array_equal(np.stack([c.data.T for c in chunks]), data.x[m][order])


def test_a_folder_is_emptied_only_if_a_demo_made_it(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    empty_folder(mine)
    (mine / "old.json").touch()
    assert [p.name for p in empty_folder(mine).iterdir()] == [MARK]
    theirs.mkdir()
    (theirs / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files that no demo made"):
        empty_folder(theirs)
    assert (theirs / "thesis.tex").exists()


def test_a_busy_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* is busy"):
            claim_port(port)
    assert claim_port(port) == port
    assert claim_port(0) > 0


def test_a_process_that_dies_is_reported_with_its_last_words_and_none_is_left(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        bad = processes.start("bad", "json.tool", [str(tmp_path / "missing.json")])
        asleep = processes.start("asleep", "http.server", ["0", "--bind", "127.0.0.1"])
        bad.process.wait()
        with pytest.raises(EdgeError, match=r"(?s)bad ended with exit code \d.*missing.json"):
            processes.check()
        assert not asleep.ended()
    assert asleep.ended()


def played() -> DemoState:
    state = DemoState({"device-1": DeviceState(late="gyro")})
    second = 1_000_000_000
    for number in range(1, 31):
        state.fold_coordinator(
            {
                "event": "UpdateApplied", "utc_ns": number * second, "device": "device-1", "version": number,
                "staleness": 2, "bytes_up": 100, "rates": {"encoder.acc": 0.5, "fusion": 0.4},
                "figures": {"imbalance.acc": 0.1, "imbalance.gyro": -0.1, "other": 3.0},
            }
        )  # fmt: skip
        state.fold_coordinator(
            {
                "event": "Evaluated", "utc_ns": number * second, "version": number, "acc": number / 40,
                "acc_by_modality": {"acc": 0.5, "gyro": 0.25},
            }
        )  # fmt: skip
    state.fold_device("device-1", {"event": "PredictionMade", "latency_ms": 2.0})
    state.fold_device("device-1", {"event": "PredictionMade", "latency_ms": 4.0})
    state.fold_device("device-1", {"event": "UpdateQueued", "bytes": 100, "raw_bytes": 500})
    state.fold_device("device-1", {"event": "ModelFetched", "bytes": 50})
    state.fold_device("device-1", {"event": "EngineSwapped", "swap_ms": 7.0, "version": {"number": 30}})
    state.fold_device("device-1", {"event": "SomethingNew"})
    return state


def test_events_fold_into_the_report(tmp_path: Path) -> None:
    state = played()
    facts = {"parameters": 1000, "wall_seconds": 30.0, "method": "mba"}
    result = report.report(state, {"acc": 0.4, "gyro": 0.3}, facts)
    fused = result["accuracy"]["fused"]
    assert (fused["before"], fused["last"], fused["best"]) == (1 / 40, 30 / 40, 30 / 40)
    assert fused["median"] == pytest.approx(np.median(np.arange(11, 31) / 40), abs=1e-4)
    assert fused["minimum"] == pytest.approx(11 / 40, abs=1e-4)
    assert (result["bytes_up"], result["bytes_up_float32"]) == (3000, 15000)
    assert (result["bytes_down"], result["bytes_down_float32"]) == (50, 4000)
    assert result["latency_ms"]["p50"] == 3.0
    assert result["mean_staleness"] == 2.0
    assert result["imbalance"] == {"acc": 0.1, "gyro": -0.1}
    report.save(result, state, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["updates_applied"] == 30
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_view_and_the_table_show_what_is_known() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(view.render(DemoState({"device-1": DeviceState()}), target=40, elapsed_s=0.0))
    console.print(view.render(played(), target=40, elapsed_s=12.0))
    report.show(console, report.report(played(), {"acc": 0.4}, {"parameters": 10, "wall_seconds": 1.0}))
    text = console.export_text()
    for shown in ("30 of 40 updates", "acc only", "+0.100", "75.0 %", "5.0 × smaller", "device-1", "40.0 %"):
        assert shown in text
