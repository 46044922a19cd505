from __future__ import annotations

from edge_sdk.learn.seeds import derive


def test_every_part_counts_and_parts_do_not_run_together() -> None:
    assert derive(1, "a", 2) == derive(1, "a", 2)
    seeds = {
        derive(1, "a", 2),
        derive(2, "a", 2),
        derive(1, "b", 2),
        derive(1, "a", 3),
        derive(1, "a2"),
        derive("1a", 2),
    }
    assert len(seeds) == 6
    assert all(0 <= s < 2**63 for s in seeds)
