"""The camera driver over OpenCV's own V4L2 code, on a device that a preloaded shim plays."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from sensors.capture import DRIVER_ERR_NS
from tests.helpers import virtual_v4l2
from tests.helpers.camera_frames import watch, watch_windows

pytest.importorskip("cv2", reason="OpenCV is not installed (extra `camera`)")

PERIOD_NS = NS / 30


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if reason := virtual_v4l2.missing():
        pytest.skip(reason)
    return virtual_v4l2.environment(tmp_path_factory.mktemp("v4l2"))


def test_frames_carry_the_drivers_time(env: dict[str, str]) -> None:
    got = watch(env, 60, source=virtual_v4l2.DEVICE)
    steps = np.diff(got["times"]) / np.maximum(1, np.diff(got["numbers"]))
    assert np.median(steps) == pytest.approx(PERIOD_NS, rel=0.03)
    assert np.mean(np.array(got["errors"]) == DRIVER_ERR_NS) > 0.9
    assert (np.diff(got["numbers"]) > 0).all()
    assert 0 < np.median(got["ages"]) < PERIOD_NS


def test_a_slow_consumer_sees_no_frame_older_than_two_periods(env: dict[str, str]) -> None:
    got = watch(env, 25, pause_s=0.1, source=virtual_v4l2.DEVICE)
    assert np.quantile(got["ages"], 0.9) < 2 * PERIOD_NS
    assert np.median(np.diff(got["numbers"])) >= 2


@pytest.mark.parametrize("deadline_s", [0.0, 0.25])
def test_in_the_windows_of_a_slow_consumer_is_no_frame_older_than_two_periods(
    env: dict[str, str], deadline_s: float
) -> None:
    got = watch_windows(env, 30, pause_s=0.1, deadline_s=deadline_s, source=virtual_v4l2.DEVICE)
    assert np.median(got["ages"]) < 2 * PERIOD_NS  # three and a half, where nothing is passed by
    assert got["passed"] > 5
