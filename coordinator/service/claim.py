"""One federation, one coordinator: how two of them notice each other, and which one goes.

A coordinator says who it is in the retained spec. After every connection it is *asking* until its own spec comes back
from the broker. Another one's spec in that time, spoken live, means that the federation has a coordinator: we go. One
that was only retained may be that of a program long dead: we wait a moment for an answer, unless it used our own store,
which nobody else can have open now. Once settled we answer every newcomer by saying our spec again.
"""

from __future__ import annotations

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.messages import SpecMessage

PROBATION_S = 2.0
_DEFEND_S = 0.5  # at most one answer in this time


class Claim:
    """The state of our claim on a federation.

    Args:
        me: our random id.
        lineage: of our store.
        federation: its name.
        clock: times the probation.
    """

    def __init__(self, me: str, lineage: str, federation: str, clock: Clock) -> None:
        self.me = me
        self._lineage = lineage
        self._federation = federation
        self._clock = clock
        self._asking = True
        self._stranger = ""  # another coordinator's retained spec, seen while asking
        self._until_ns = 0  # end of the probation
        self._defended_ns = -NS

    def connected(self) -> None:
        """The connection is new."""
        self._asking = True
        self._stranger = ""

    @property
    def settled(self) -> bool:
        """Says whether the federation is ours."""
        return not self._asking and self._clock.now_ns() >= self._until_ns

    @property
    def until_ns(self) -> int:
        """When a probation ends; 0: there is none."""
        return 0 if self._asking else self._until_ns

    def heard(self, spec: SpecMessage, *, retained: bool) -> bool:
        """Takes a spec from the wire; returns whether ours has to be said again.

        Raises:
            ConfigError: another coordinator has this federation.
        """
        if spec.coordinator == self.me:
            if not retained and self._asking:
                self._asking = False
                self._until_ns = self._clock.now_ns() + round(PROBATION_S * NS) if self._stranger else 0
            return False
        if retained and self._asking:
            if spec.stats.get("lineage") != self._lineage:
                self._stranger = spec.coordinator
            return False
        if not self.settled:
            raise ConfigError(
                f"federation {self._federation!r} has a coordinator already (id {spec.coordinator}); "
                "stop that one, or give this federation another name"
            )
        now_ns = self._clock.now_ns()
        again = now_ns - self._defended_ns >= _DEFEND_S * NS
        self._defended_ns = now_ns if again else self._defended_ns
        return again


__all__ = ["PROBATION_S", "Claim"]
