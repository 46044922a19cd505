"""The topics of wire protocol 1 (`docs/protocol.md`): built here, taken apart here, nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from edge_sdk.core.errors import ConfigError, WireFormatError
from edge_sdk.core.messages import PROTOCOL
from edge_sdk.core.spec import IDENTIFIER

_IDENTIFIER = re.compile(IDENTIFIER[:-1] + r"\Z")  # $ alone would let a trailing newline through
_DEVICE_KINDS = frozenset({"status", "task", "update", "fetch", "reply", "prediction", "label"})


class Parsed(NamedTuple):
    """What a topic says."""

    kind: str  # "spec" | "head" | "model" | "status" | "task" | "update" | "fetch" | "reply" | "prediction" | "label"
    device: str = ""  # "" for spec, head and model
    slot: int = -1  # model only
    chunk: int = -1  # model only


def identifier(what: str, value: str) -> str:
    """Returns `value` if it may stand in a topic.

    Raises:
        ConfigError: it is not 1 to 64 of A-Z a-z 0-9 _ -.
    """
    if not _IDENTIFIER.match(value):
        raise ConfigError(f"{what} must be 1 to 64 of A-Z a-z 0-9 _ -, found {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one federation."""

    federation: str

    def __post_init__(self) -> None:
        identifier("a federation's name", self.federation)

    @property
    def root(self) -> str:
        """What all topics of this federation begin with, without the slash."""
        return f"edge/{PROTOCOL}/{self.federation}"

    @property
    def spec(self) -> str:
        """FederationSpec; retained."""
        return f"{self.root}/spec"

    @property
    def head(self) -> str:
        """Newest and best published version; retained."""
        return f"{self.root}/model/head"

    def model_chunk(self, slot: int, chunk: int) -> str:
        """One chunk of the version in this slot; retained."""
        if slot < 0 or chunk < 0:
            raise ValueError(f"slot and chunk must not be negative, found {slot} and {chunk}")
        return f"{self.root}/model/{slot}/{chunk}"

    def status(self, device: str) -> str:
        """The device's status; retained, and its last will."""
        return self._device(device, "status")

    def task(self, device: str) -> str:
        """Work for the device."""
        return self._device(device, "task")

    def update(self, device: str) -> str:
        """Chunks of the device's updates."""
        return self._device(device, "update")

    def fetch(self, device: str) -> str:
        """The device's questions."""
        return self._device(device, "fetch")

    def reply(self, device: str) -> str:
        """Answers to the device."""
        return self._device(device, "reply")

    def prediction(self, device: str) -> str:
        """The device's predictions."""
        return self._device(device, "prediction")

    def label(self, device: str) -> str:
        """Labels given to the device."""
        return self._device(device, "label")

    @property
    def all_statuses(self) -> str:
        """Filter for the status of every device."""
        return self._every("status")

    @property
    def all_updates(self) -> str:
        """Filter for the updates of every device."""
        return self._every("update")

    @property
    def all_fetches(self) -> str:
        """Filter for the questions of every device."""
        return self._every("fetch")

    @property
    def all_predictions(self) -> str:
        """Filter for the predictions of every device."""
        return self._every("prediction")

    def all_chunks(self, slot: int) -> str:
        """Filter for every chunk of a slot."""
        return f"{self.root}/model/{slot}/+"

    @property
    def coordinator_filters(self) -> tuple[str, ...]:
        """What a coordinator listens to."""
        return (self.all_statuses, self.all_updates, self.all_fetches)

    def device_filters(self, device: str) -> tuple[str, ...]:
        """What a device listens to, besides the model chunks it lacks."""
        return (self.spec, self.head, self.task(device), self.reply(device), self.label(device))

    def parse(self, topic: str) -> Parsed:
        """Takes a topic of this federation apart.

        Raises:
            WireFormatError: it is none.
        """
        return _parse(self.federation, topic)

    def _device(self, device: str, kind: str) -> str:
        return _of_device(self.federation, device, kind)

    def _every(self, kind: str) -> str:
        return f"{self.root}/device/+/{kind}"


@lru_cache(maxsize=4096)  # topics are few and come again
def _of_device(federation: str, device: str, kind: str) -> str:
    return f"{Topics(federation).root}/device/{identifier('a device id', device)}/{kind}"


@lru_cache(maxsize=4096)
def _parse(federation: str, topic: str) -> Parsed:
    root = Topics(federation).root + "/"
    if topic.startswith(root):
        tail = topic[len(root) :].split("/")
        if tail == ["spec"]:
            return Parsed("spec")
        if tail == ["model", "head"]:
            return Parsed("head")
        if len(tail) == 3 and tail[0] == "model" and _number(tail[1]) and _number(tail[2]):
            return Parsed("model", slot=int(tail[1]), chunk=int(tail[2]))
        if len(tail) == 3 and tail[0] == "device" and tail[2] in _DEVICE_KINDS and _IDENTIFIER.match(tail[1]):
            return Parsed(tail[2], device=tail[1])
    raise WireFormatError(f"not a topic of federation {federation!r}: {topic[:200]!r}")


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and (text == "0" or text[0] != "0")


def matches(topic_filter: str, topic: str) -> bool:
    """Says whether a filter with MQTT's wildcards + and # covers a topic."""
    if topic_filter == topic:
        return True
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False
    levels = topic.split("/")
    wanted = topic_filter.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


def check_filter(topic_filter: str) -> None:
    """ValueError unless the filter is one MQTT allows."""
    levels = topic_filter.split("/")
    bad_hash = any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#")
    if not topic_filter or "\0" in topic_filter or bad_hash or any("+" in level and level != "+" for level in levels):
        raise ValueError(f"not an MQTT topic filter: {topic_filter!r}")


def check_topic(topic: str) -> None:
    """ValueError unless something can be published there."""
    if not topic or "+" in topic or "#" in topic or "\0" in topic:
        raise ValueError(f"not an MQTT topic to publish to: {topic!r}")


def packet_bytes(topic: str, payload: bytes) -> int:
    """Returns the size of the MQTT 3.1.1 PUBLISH packet (QoS 1), bytes."""
    rest = 2 + len(topic.encode()) + 2 + len(payload)
    return 1 + max(1, -(-rest.bit_length() // 7)) + rest


__all__ = ["Parsed", "Topics", "check_filter", "check_topic", "identifier", "matches", "packet_bytes"]
