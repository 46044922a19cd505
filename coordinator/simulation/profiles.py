"""Named worlds: how fast boards and links are, and when modalities arrive.

`MBA` is the world of the MBA paper (section 5.1): half of a client's modalities are there at time 0, the
others 300 s later, each after its transmission at U[200, 800] kB/s; a Jetson TX2 takes 36 times as long as a V100, and
half of the clients are five times slower still.
"""

from __future__ import annotations

from edge_sdk.core.spec import Model


class WorldProfile(Model):
    """When data arrive and how long training takes."""

    delay_s: float = 300.0  # start delay of the late half of the modalities
    early_fraction: float = 0.5  # of the modalities; at least one
    bandwidth_low_kbps: float = 200.0  # kB/s, kB = 1000 bytes
    bandwidth_high_kbps: float = 800.0
    sample_s: float = 2e-5  # modelled V100 seconds per sample, modality and epoch
    board_factor: float = 36.0  # Jetson TX2 against V100
    slow_factor: float = 5.0
    slow_fraction: float = 0.5  # of the clients, fixed per client
    link_latency_s: float = 0.0  # of model transfers
    link_kbps: float = 0.0  # model transfers; 0: they take no time


MBA = WorldProfile()
INSTANT = WorldProfile(delay_s=0.0, bandwidth_low_kbps=1e9, bandwidth_high_kbps=1e9, sample_s=0.0)
PROFILES = {"mba": MBA, "instant": INSTANT}

__all__ = ["INSTANT", "MBA", "PROFILES", "WorldProfile"]
