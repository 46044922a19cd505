from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from edge_sdk.core import registry
from edge_sdk.core.errors import PluginError


def test_names_do_not_load_anything() -> None:
    loaded = set(sys.modules)
    for kind in registry.GROUPS:
        assert registry.names(kind) == sorted(registry.names(kind))
    assert not {m for m in set(sys.modules) - loaded if m.startswith(("torch", "paho", "sensors"))}


def test_ours_are_registered() -> None:
    assert {"memory", "mqtt"} <= set(registry.names("transports"))
    assert {"replay", "synthetic"} <= set(registry.names("sensors"))
    assert registry.load("transports", "memory").__name__ == "MemoryTransport"


def test_unknown_kind_and_name_say_what_there_is() -> None:
    with pytest.raises(PluginError, match=r"'transprots'.*transports"):
        registry.names("transprots")
    with pytest.raises(PluginError, match=r"'mqtt5'.*installed: memory, mqtt"):
        registry.load("transports", "mqtt5")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("edge_sdk_absent_library:Thing", "not installed.*edge_sdk_absent_library"),
        ("edge_sdk.core.errors:NoSuchThing", "NoSuchThing"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("broken", value, "edge_sdk.sensors")
    monkeypatch.setattr(registry, "_group", lambda _kind: {"broken": point})
    with pytest.raises(PluginError, match=message) as caught:
        registry.load("sensors", "broken")
    assert "sensor 'broken'" in str(caught.value)
    assert caught.value.__cause__ is not None
