from __future__ import annotations

from importlib.util import find_spec

import pytest

from edge_sdk.runtime import probe


def test_libraries_are_tried_in_processes_of_their_own() -> None:
    told = probe.run()
    if find_spec("onnxruntime") is not None:
        assert told.providers is not None
        assert "CPUExecutionProvider" in told.providers
    if find_spec("torch") is not None:
        assert told.torch_numpy == ""
        assert told.torch_arch is not None
    if find_spec("cv2") is not None:
        assert told.gstreamer is False


def test_a_library_that_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.sys, "executable", "/bin/false")
    assert probe._child("torch") == {"kernel": "ended with 1"}
    assert probe._child("onnxruntime") == {"providers": []}
