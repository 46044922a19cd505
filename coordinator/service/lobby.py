"""What devices said that cannot be served yet: the federation is not ours so far, or they are not enrolled.

A device asks for a task once and then waits for it, so its question must not be lost: the last status and the last
question of each are kept, and count as soon as they can.
"""

from __future__ import annotations

from edge_sdk.core.clock import NS, Clock

LOOK_NS = 5 * NS  # between two looks at who may be let in by now
_DEVICES = 10_000
_BYTES = 4096  # of one message
_ORDER = ("status", "fetch")  # kept, and said again in this order


class Lobby:
    """The last words of devices that wait outside.

    Args:
        clock: times the looks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._words: dict[str, dict[str, bytes]] = {}
        self._looked_ns = -LOOK_NS

    def put(self, kind: str, device: str, payload: bytes) -> None:
        """Keeps a message, unless it is large, of another kind, or too many wait already."""
        if kind not in _ORDER or len(payload) > _BYTES or (device not in self._words and len(self._words) >= _DEVICES):
            return
        self._words.setdefault(device, {})[kind] = payload

    def devices(self) -> tuple[str, ...]:
        """Returns who waits, if it is time to look; the next time is `LOOK_NS` later."""
        if not self._words or self._clock.now_ns() < self._looked_ns + LOOK_NS:
            return ()
        self._looked_ns = self._clock.now_ns()
        return tuple(self._words)

    def hurry(self) -> None:
        """Makes the next look due at once."""
        self._looked_ns = self._clock.now_ns() - LOOK_NS

    def take(self, device: str) -> list[tuple[str, bytes]]:
        """Returns what a device said, as (kind, payload), and forgets it."""
        words = self._words.pop(device, {})
        return [(kind, words[kind]) for kind in _ORDER if kind in words]

    @property
    def next_ns(self) -> int | None:
        """When the next look is due."""
        return self._looked_ns + LOOK_NS if self._words else None


__all__ = ["LOOK_NS", "Lobby"]
