"""A minute of garbage on every serial protocol: as many bytes as the line carries, without the waiting."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from sensors.protocols import BITS, PROTOCOLS, Plan
from tests.helpers.virtual_imu import bno_reply, csv_sample, wit_sample, xsens_sample

BAUD, SECONDS = 115_200, 60
MINUTE = SECONDS * BAUD // BITS  # bytes: 691,200
PIECE = 230  # what comes in the 20 ms that a driver collects
FEW = 20  # good samples before and after
CASES: dict[str, tuple[tuple[str, ...], Callable[[int], bytes]]] = {
    "witmotion": (("acc", "gyro"), wit_sample),
    "xsens": (("acc", "gyro"), xsens_sample),
    "bno055": (("acc", "gyro"), bno_reply),
    "csv": (("t_ms", "ax", "ay", "az", "gx", "gy", "gz"), csv_sample),
}


@pytest.mark.parametrize("name", CASES)
def test_after_a_minute_of_garbage_the_sensor_is_heard_at_once(name: str) -> None:
    channels, sample = CASES[name]
    protocol = PROTOCOLS[name](Plan(channels, 100.0))
    good, rng = [sample(i) for i in range(5, 5 + FEW)], random.Random(name)
    before = sum(len(protocol.feed(data).data) for data in good)
    assert before >= FEW - 1  # the first line may be half of one
    tracemalloc.start()
    made = fed = 0
    while fed < MINUTE:
        made += len(protocol.feed(rng.randbytes(PIECE)).data)
        fed += PIECE
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert memory < 100_000  # of 691,200 bytes nothing is kept but an unfinished frame
    assert protocol.damage.skipped_bytes > 0.95 * fed
    # Random bytes hold whole frames now and then: BNO055 has no checksum, and lines end by chance.
    assert made <= (0 if name in ("witmotion", "xsens", "csv") else fed / 256**2 * 3), made
    after = [samples for data in good * 3 if len((samples := protocol.feed(data)).data)]
    assert sum(len(samples.data) for samples in after) >= 2 * FEW  # one broken length may swallow some
    assert after[0].lost[0] or name == "bno055"  # which is asked anew each time, and forgets
    assert np.isfinite(after[-1].data).all()
