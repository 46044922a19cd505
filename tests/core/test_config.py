from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.core.config import BrokerConfig, DeviceConfig, load_toml, parse
from edge_sdk.core.errors import ConfigError

GOOD = """
[device]
id = "d1"
federation = "gait"

[broker]
host = "broker.local"
port = 8883

[sensors.acc]
driver = "replay"
options = {file = "a.npz", speed = 2.0}
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [n for n in os.environ if n.startswith("EDGE_")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "device.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_good_file(tmp_path: Path) -> None:
    config = load_toml(write(tmp_path, GOOD), DeviceConfig)
    assert (config.broker.host, config.broker.port, config.broker.keepalive_s) == ("broker.local", 8883, 30)
    assert config.sensors["acc"].options == {"file": "a.npz", "speed": 2.0}
    assert config.reservoir.round_windows == 512


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[broker]\nprot = 1", r"broker\.prot: unknown key"),
        ("[brokers]\nport = 1", r"brokers: unknown key"),
        ("[broker]\nport = 'many'", r"broker\.port: .*found 'many'"),
        ("[broker]\nport = 70000", r"broker\.port: .*found 70000"),
        ("[broker]\nport = 1.5", r"broker\.port: .*found 1\.5"),
        ("[reservoir]\nincomplete = 'ignore'", r"reservoir\.incomplete: .*found 'ignore'"),
        ("[sensors.acc]\ndriver = 'x'\nspeed = 1", r"sensors\.acc\.speed: unknown key"),
        ("[sensors.acc]\nbuffer_s = 1", r"sensors\.acc\.driver: required, but missing"),
        ("sensors = 3", r"sensors: .*found 3"),
    ],
)
def test_what_is_wrong_is_named_by_file_section_and_key(tmp_path: Path, line: str, message: str) -> None:
    head = '[device]\nid = "d1"\nfederation = "gait"\n'
    text = line + "\n" + head if line.startswith("sensors =") else head + line
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_toml(path, DeviceConfig)
    assert str(caught.value).startswith(f"{path}:")
    assert isinstance(caught.value, ValueError)


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, '[device]\nid = "d 1"\nfederation = "gait"\n[broker]\nport = 0\nhots = "x"\n')
    with pytest.raises(ConfigError) as caught:
        load_toml(path, DeviceConfig)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{path}:device.id",
        f"{path}:broker.port",
        f"{path}:broker.hots",
    ]


def test_missing_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device: required, but missing"):
        load_toml(write(tmp_path, "[broker]\nport = 1\n"), DeviceConfig)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_toml(tmp_path / "absent.toml", DeviceConfig)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path, DeviceConfig)
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        load_toml(write(tmp_path, "port = = 3"), DeviceConfig)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(binary, DeviceConfig)


def test_precedence_is_command_line_environment_file_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.setenv("EDGE_BROKER__PORT", "1884")
    monkeypatch.setenv("EDGE_BROKER__KEEPALIVE_S", "7")
    monkeypatch.setenv("EDGE_BROKER__PASSWORD", "secret")
    monkeypatch.setenv("EDGE_UNRELATED", "x")
    config = load_toml(path, DeviceConfig, {"broker.port": 1885, "inference.enabled": False})
    assert (config.broker.host, config.broker.port, config.broker.keepalive_s) == ("broker.local", 1885, 7)
    assert not config.inference.enabled
    assert config.broker.password == "secret"
    assert "secret" not in repr(config)
    assert load_toml(path, DeviceConfig).broker.port == 1884


def test_an_environment_variable_that_fits_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_BROKER__PROT", "1884")
    with pytest.raises(ConfigError, match=r"broker\.prot.*EDGE_BROKER__PROT.*unknown key"):
        load_toml(write(tmp_path, GOOD), DeviceConfig)


def test_a_wrong_value_in_the_environment_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_BROKER__PORT", "many")
    with pytest.raises(ConfigError, match=r"broker\.port.*EDGE_BROKER__PORT"):
        load_toml(write(tmp_path, GOOD), DeviceConfig)


def test_a_value_where_the_environment_wants_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_BROKER__PORT__X", "1")
    with pytest.raises(ConfigError, match=r"EDGE_BROKER__PORT__X.*'port' is a value"):
        load_toml(write(tmp_path, GOOD), DeviceConfig)


def test_secrets_are_not_repeated_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "\n[broker2]\npassword = 'hunter2'\n")
    with pytest.raises(ConfigError) as caught:
        load_toml(path, DeviceConfig)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse({"password": ["hunter2"]}, BrokerConfig, "x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse({"device": {"id": "d"}, "broker": {"password": "hunter2", "port": "x"}}, DeviceConfig, "x")
    assert "hunter2" not in str(caught.value)


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BrokerConfig().port = 1  # type: ignore[misc]
