"""What a reservoir writes down: append-only segment files, oldest deleted first, torn tails ignored.

Each file holds frames as `edge_sdk.recording` describes them. The first says on which time base and for which spec
the rest was written; then one frame per part and one per label. A restart within one life of the stream clock goes
on with the same window indices, so that labels and late parts still join; after a reboot, or where a sped-up clock
starts anew, the old windows get negative indices: older than anything new, and nothing joins them by accident.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import DataError
from edge_sdk.core.spec import FederationSpec
from edge_sdk.recording import FrameReader, FrameWriter, describe, restore
from edge_sdk.streams.rounds import Row

logger = logging.getLogger(__name__)

_SAME_BASE_NS = 1 * NS  # NTP may move the time of day this far while the monotonic clock runs on


class Journal:
    """Segment files of one reservoir.

    Args:
        path: folder; made if it is not there.
        spec: windows of another grid, shapes or classes are not read back.
        clock: the stream clock.
        disk_bytes: bound for all files together.
    """

    def __init__(self, path: Path, spec: FederationSpec, clock: Clock, *, disk_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._digest = data_digest(spec)
        self._spec = spec
        self._clock = clock
        self._disk_bytes = disk_bytes
        self._segment_bytes = max(1 << 16, disk_bytes // 16)
        self._sizes = {p: p.stat().st_size for p in sorted(path.glob("*.seg"))}  # oldest first
        self._file: FrameWriter | None = None
        self._closed = False
        self.lost_bytes = 0  # at torn tails
        self.damaged = 0  # frames
        self.other_spec = 0  # files that belong to another spec
        self.deleted = 0  # files that made room
        self.error = ""  # why nothing is written any more; "": all is well

    def part(self, row: Row, modality: str) -> None:
        """Writes down one modality of a row."""
        layout, data = describe(row.data[modality])
        header = {"kind": "part", "index": row.index, "t_ns": row.t_ns, "since_ns": row.since_ns[modality]}
        self._append({**header, "modality": modality, "quality": row.quality.get(modality, 1.0), **layout}, data)

    def label(self, row: Row) -> None:
        """Writes down the label of a row."""
        self._append({"kind": "label", "index": row.index, "t_ns": row.t_ns, "class": row.label})

    def status(self) -> dict[str, Any]:
        """Returns what the command line shows, as plain data."""
        return {
            "megabytes": sum(self._sizes.values()) / 1e6,
            "files_deleted": self.deleted,
            "lost_bytes": self.lost_bytes,
            "damaged": self.damaged,
            "other_spec": self.other_spec,
            "error": self.error,
        }

    def close(self) -> None:
        """Ends writing; may be called twice. What comes afterwards lives in memory only."""
        self._closed = True
        self._end_file()

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def load(self, *, limit_bytes: int) -> Mapping[int, Row]:
        """Returns the rows of the newest files, at most about `limit_bytes` of them, in order of index."""
        chosen: list[Path] = []
        size = 0
        for path in reversed(self._sizes):
            if chosen and size + self._sizes[path] > limit_bytes:
                break
            chosen.append(path)
            size += self._sizes[path]
        found: dict[tuple[int, int], Row] = {}  # (time base, index) → row
        for path in reversed(chosen):
            self._read(path, found)
        return self._renumber([(base, row) for (base, _), row in found.items() if row.data])

    def _read(self, path: Path, found: dict[tuple[int, int], Row]) -> None:
        frames = FrameReader(path)
        base: int | None = None
        try:
            for header, body in frames:
                if base is None:
                    base = self._base_of(header)
                    if base is None:
                        self.other_spec += 1
                        return
                    continue
                self._apply(header, body, found, base)
        except (DataError, KeyError, TypeError, ValueError) as error:
            logger.warning("reservoir: %s: %s; the rest of the file is left out", path, error)
            self.damaged += 1
        self.lost_bytes += frames.lost_bytes
        self.damaged += frames.damaged

    def _base_of(self, header: Mapping[str, Any]) -> int | None:
        if header.get("kind") != "session" or header.get("spec") != self._digest:
            return None
        base = int(header["base_ns"])
        return self._base_ns() if abs(base - self._base_ns()) < _SAME_BASE_NS else base

    def _apply(self, header: Mapping[str, Any], body: bytes, found: dict[tuple[int, int], Row], base: int) -> None:
        key = (base, int(header["index"]))
        row = found.setdefault(key, Row(key[1], int(header["t_ns"])))
        if header["kind"] == "label":
            row.label = int(header["class"])
            return
        modality = str(header["modality"])
        data = restore(header, body)
        if data.dtype != np.float32 or data.shape != self._spec.modality(modality).shape:
            raise DataError(f"window {key[1]} holds {data.dtype} {data.shape} for modality {modality!r}")
        row.data[modality] = data
        row.since_ns[modality] = int(header["since_ns"])
        row.quality[modality] = float(header.get("quality", 1.0))

    def _renumber(self, rows: list[tuple[int, Row]]) -> Mapping[int, Row]:
        """Gives rows of another life of the stream clock negative indices, the newest −1."""
        base, now_ns = self._base_ns(), self._clock.now_ns()
        current = [row for b, row in rows if b == base]
        if any(row.t_ns > now_ns for row in current):  # a sped-up clock that started again
            current = []
        keep = {id(row) for row in current}
        old = sorted((item for item in rows if id(item[1]) not in keep and item[1].label >= 0), key=_age)
        for index, (_, row) in enumerate(old, start=-len(old)):
            row.index, row.t_ns = index, now_ns
            row.since_ns = dict.fromkeys(row.since_ns, now_ns)
        return {row.index: row for row in [*(row for _, row in old), *sorted(current, key=lambda row: row.index)]}

    def _base_ns(self) -> int:
        """Time of day minus stream clock: constant for one life of the stream clock."""
        return self._clock.utc_ns() - self._clock.now_ns()

    def _append(self, header: Mapping[str, Any], *buffers: memoryview) -> None:
        if self.error or self._closed:
            return
        try:
            file = self._room()
            file.append(header, *buffers)
        except OSError as error:  # a full or broken disk must not stop sensing and training: go on in memory
            self.error = str(error)
            logger.warning("reservoir: %s: %s; windows are kept in memory only from now on", self._path, error)
            return
        self._sizes[self._current] = file.size

    def _room(self) -> FrameWriter:
        """Returns a file with room in it; deletes the oldest ones beyond the bound."""
        if self._file is not None and self._file.size < self._segment_bytes:
            return self._file
        self._end_file()
        while self._sizes and sum(self._sizes.values()) + self._segment_bytes > self._disk_bytes:
            oldest = next(iter(self._sizes))
            oldest.unlink(missing_ok=True)
            del self._sizes[oldest]
            self.deleted += 1
        newest = max((int(path.stem) for path in self._sizes), default=0)
        self._current = self._path / f"{newest + 1:08d}.seg"
        self._file = FrameWriter(self._current)
        self._file.append({"kind": "session", "base_ns": self._base_ns(), "spec": self._digest})
        return self._file


def _age(item: tuple[int, Row]) -> int:
    base_ns, row = item
    return base_ns + row.t_ns


def data_digest(spec: FederationSpec) -> str:
    """Returns a digest of what stored windows depend on: shapes, rates, features, classes and the window grid."""
    fixed = {
        "modalities": [(m.name, m.shape, m.rate_hz, m.feature and m.feature.model_dump()) for m in spec.modalities],
        "classes": spec.classes,
        "window": (spec.window.length_s, spec.window.hop_s),
    }
    return hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=16).hexdigest()


__all__ = ["Journal", "data_digest"]
