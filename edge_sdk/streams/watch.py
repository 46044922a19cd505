"""Does a modality still look like what the device learned from? Stuck, saturated, drifting, or with a new noise floor.

A person who gets up and walks changes every level and every variance a hundredfold, and must not be taken for a broken
sensor. So each fault is told by what activities do not do (thresholds checked on people of UCI-HAR and UTD-MHAD):

    stuck      moves less than the stillest window learned from, by far: a sensor at rest still has its own noise
    saturated  many samples lie exactly at the window's extreme, of a signal that has many levels
    noise      noisier than ever, and the window is mostly that noise: movements are smooth from sample to sample
    drifting   its level has left the levels learned from, and went there along a straight line, not in a step

Faults but drift must last for some windows. What a faulty window shows is not learned from.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.config import HealthConfig
from edge_sdk.streams.summary import Float64, Summary

log = logging.getLogger(__name__)

STATISTICS = "statistics.json"  # beside the reservoir's files

_LASTING = ("stuck", "saturated", "noise")  # kinds that must show for some windows

_BLOCKS = 32  # points of the line that a drift is
_STRAIGHT = 0.9  # share of a level's variance over the blocks that the line explains
_STEP = 0.3  # share of the way that one block may make
_SAVE_EVERY = 64  # windows learned between two files


@dataclass(slots=True)
class Reference:
    """What the windows learned from looked like; arrays (C,)."""

    count: int
    mean: Float64  # of the windows' means, over the first `learn_windows`
    spread: Float64  # variance of the windows' means, times count
    std: Float64  # mean of the windows' deviations
    low: Float64  # lowest sample
    high: Float64  # highest sample
    moved: Float64  # least movement of a window
    noise: Float64  # greatest noise of a window
    clipped: Float64  # greatest share at an extreme, over the first `learn_windows`

    @staticmethod
    def empty(channels: int) -> Reference:
        """Returns what nothing was learned from."""
        none, zeros = np.full(channels, np.inf), np.zeros(channels)
        return Reference(
            0, zeros.copy(), zeros.copy(), zeros.copy(), none.copy(), -none, none.copy(), zeros.copy(), zeros.copy()
        )

    def begin(self, s: Summary, moved: Float64) -> None:
        """Adds one of the first windows."""
        self.count += 1
        off = s.mean - self.mean
        self.mean = self.mean + off / self.count
        self.spread = self.spread + off * (s.mean - self.mean)
        self.std = self.std + (s.std - self.std) / self.count
        self.noise, self.clipped = np.maximum(self.noise, s.noise), np.maximum(self.clipped, s.clipped)
        self.widen(s, moved, s.noise)

    def widen(self, s: Summary, moved: Float64, noise: Float64) -> None:
        """Adds a later window. What could creep away in small steps (levels, clipping, noise itself) stays as it is."""
        self.low, self.high = np.minimum(self.low, s.low), np.maximum(self.high, s.high)
        self.moved = np.minimum(self.moved, moved)
        self.noise = np.maximum(self.noise, noise)

    def plain(self) -> dict[str, Any]:
        """Returns it as plain data."""
        arrays = {name: getattr(self, name).tolist() for name in self.__slots__ if name != "count"}
        return {"count": self.count, **arrays}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Reference:
        """Returns what `plain` gave."""
        arrays = {name: np.asarray(plain[name], np.float64) for name in Reference.__slots__ if name != "count"}
        return Reference(int(plain["count"]), **arrays)


class Watch:
    """Watches one modality.

    Args:
        config: thresholds.
        reference: what was learned before; None: nothing.
    """

    def __init__(self, config: HealthConfig, reference: Reference | None = None) -> None:
        self.reference = reference
        self.faults: dict[str, list[int]] = {}  # kind → channels
        self._config = config
        self._runs = np.zeros((len(_LASTING), 0), np.int64)  # windows in a row that show a kind, per channel
        self._before: Float64 | None = None  # mean of the window before
        self._block: list[Float64] = []  # means of the windows of the block that is not full
        self._blocks: deque[Float64] = deque(maxlen=_BLOCKS)
        self._drifting: NDArray[np.bool_] = np.zeros(0 if reference is None else len(reference.mean), np.bool_)

    def assess(self, s: Summary) -> float:
        """Takes a window; returns the share of the channels that can be trusted, [0, 1]."""
        channels = len(s.mean)
        if self.reference is None or len(self.reference.mean) != channels:
            self.reference = Reference.empty(channels)
            self._drifting = np.zeros(channels, np.bool_)
        reference, config = self.reference, self._config
        before, self._before = self._before, s.mean
        moved = s.std
        if s.samples == 1:  # a single image moves against the one before it
            if before is None:
                return 1.0
            moved = np.abs(s.mean - before)
        if reference.count < config.learn_windows:
            reference.begin(s, moved)
            return 1.0
        shows = self._shows(reference, s, moved)
        seen, drifting = bool(shows.any()), bool(self._drifting.any())
        if not seen and not drifting:
            reference.widen(s, moved, np.where(s.white > config.noise_share, 0.0, s.noise))
        lasting = self._lasting(shows, seen=seen)
        drifts = self._drifts(reference, s.mean)
        if not lasting.any() and not drifts.any():  # nearly always
            self.faults = {}
            return 1.0
        flagged = [*zip(_LASTING, lasting, strict=True), ("drifting", drifts)]
        self.faults = {kind: np.flatnonzero(mask).tolist() for kind, mask in flagged if mask.any()}
        return 1.0 - float((lasting.any(axis=0) | drifts).mean())

    def _shows(self, reference: Reference, s: Summary, moved: Float64) -> NDArray[np.bool_]:
        """Returns which channels of this window show what, (kinds of _LASTING, C)."""
        config = self._config
        shows = np.empty((len(_LASTING), len(moved)), np.bool_)
        np.less(moved, config.stuck_ratio * reference.moved, out=shows[0])
        np.greater(s.clipped, np.maximum(config.saturated_share, 3.0 * reference.clipped), out=shows[1])
        np.greater(s.noise, config.noise_factor * reference.noise, out=shows[2])
        shows[2] &= s.white > config.noise_share
        return shows

    def _lasting(self, shows: NDArray[np.bool_], *, seen: bool) -> NDArray[np.bool_]:
        """Returns what has shown for long enough, (kinds of _LASTING, C)."""
        if not seen or self._runs.shape != shows.shape:
            self._runs = np.zeros(shows.shape, np.int64)
        if seen:
            self._runs = (self._runs + 1) * shows
        return self._runs >= self._config.persist_windows

    def _drifts(self, reference: Reference, mean: Float64) -> NDArray[np.bool_]:
        self._block.append(mean)
        if len(self._block) < max(1, self._config.drift_windows // _BLOCKS):
            return self._drifting
        self._blocks.append(np.mean(self._block, axis=0))
        self._block.clear()
        spread = np.sqrt(reference.spread / max(1, reference.count - 1))
        limit = self._config.drift_sigmas * (spread + 0.1 * reference.std)
        level = np.mean([*self._blocks][-4:], axis=0)
        off = np.abs(level - reference.mean)
        # Flagged until it is well inside again: a sensor that has stopped drifting is still wrong.
        self._drifting = (self._drifting & (off > 0.5 * limit)) | ((off > limit) & self._straight())
        return self._drifting

    def _straight(self) -> NDArray[np.bool_]:
        """Says which levels went along a straight line over the last blocks."""
        levels = np.array(self._blocks)  # (blocks, C)
        if len(levels) < _BLOCKS:
            return np.zeros(levels.shape[1], np.bool_)
        t = np.arange(_BLOCKS) - (_BLOCKS - 1) / 2
        centred = levels - levels.mean(axis=0)
        slope = t @ centred / (t @ t)
        total = (centred**2).sum(axis=0)
        explained = np.divide(slope**2 * (t @ t), total, out=np.zeros(len(slope)), where=total > 0)
        way = np.abs(slope) * (_BLOCKS - 1)
        steps: Float64 = np.abs(np.diff(levels, axis=0)).max(axis=0)
        return np.asarray((explained > _STRAIGHT) & (steps < _STEP * way))


_SAID = {
    "stuck": "does not move",
    "saturated": "is cut off at its extreme",
    "noise": "has more noise than ever",
    "drifting": "has drifted away from what was learned",
}


class Watches:
    """Watches all modalities of a device, tells when a fault begins or ends, and keeps what was learned in a file.

    Args:
        config: thresholds.
        changed: called when a fault has begun or ended.
    """

    def __init__(self, config: HealthConfig, changed: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self._changed = changed
        self._watches: dict[str, Watch] = {}
        self._path: Path | None = None
        self._digest = ""
        self._learned = 0  # windows since the last file

    @property
    def faults(self) -> Mapping[str, Mapping[str, list[int]]]:
        """Modality → kind → channels, of modalities with faults."""
        return {m: dict(w.faults) for m, w in self._watches.items() if w.faults}

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence per fault, for people."""
        return tuple(_sentence(m, kind, c) for m, kinds in self.faults.items() for kind, c in kinds.items())

    def assess(self, modality: str, summary: Callable[[], Summary] | None) -> float:
        """Returns what the quality of a modality's window is to be multiplied with, [0, 1].

        Args:
            modality: its name.
            summary: tells what the window looks like; called only where it is watched. None: nothing can be told.
        """
        if summary is None or not self._config.enabled or modality in self._config.ignore:
            return 1.0
        watch = self._watches.get(modality)
        if watch is None:
            watch = self._watches[modality] = Watch(self._config)
        before = dict(watch.faults)
        factor = watch.assess(summary())
        self._learned += 1
        if watch.faults != before:
            self._tell(modality, before, watch.faults)
            self.save()
            self._changed()
        elif self._learned >= _SAVE_EVERY:
            self.save()
        return factor

    @staticmethod
    def _tell(modality: str, before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> None:
        for kind in now.keys() - before.keys():
            log.warning(
                "%s; its windows count less until it looks again as learned", _sentence(modality, kind, now[kind])
            )
        for kind in before.keys() - now.keys():
            log.info("modality %s: %s: over", modality, kind)

    def keep(self, path: Path, digest: str) -> None:
        """Goes on with what a file holds, and writes to it from now on.

        Args:
            path: the file; it need not be there.
            digest: of what the statistics depend on; a file with another one is not read.
        """
        self._path, self._digest = path, digest
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain["digest"] == digest:
                for modality, found in plain["learned"].items():
                    self._watches[modality] = Watch(self._config, Reference.of(found))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not read, learned anew: %s", path, error)

    def save(self) -> None:
        """Writes down what was learned and which faults there are; a disk that is full must not stop sensing."""
        self._learned = 0
        if self._path is None:
            return
        learned = {m: w.reference.plain() for m, w in self._watches.items() if w.reference and w.reference.count}
        plain = {"digest": self._digest, "learned": learned, "faults": self.faults, "notes": self.notes}
        draft = self._path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(plain), encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            log.warning("%s: cannot be written: %s; the statistics are learned anew after a restart", self._path, error)
            self._path = None


def _sentence(modality: str, kind: str, channels: list[int]) -> str:
    which = f"channel {channels[0]}" if len(channels) == 1 else f"channels {', '.join(map(str, channels))}"
    return f"modality {modality}: {kind}: {which} {_SAID[kind] if len(channels) == 1 else _PLURAL[kind]}"


_PLURAL = {
    "stuck": "do not move",
    "saturated": "are cut off at their extremes",
    "noise": "have more noise than ever",
    "drifting": "have drifted away from what was learned",
}


def read_notes(path: Path) -> tuple[str, ...]:
    """Returns the notes that a file of `Watches` holds; none where there is none."""
    try:
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))["notes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


__all__ = ["STATISTICS", "Reference", "Watch", "Watches", "read_notes"]
