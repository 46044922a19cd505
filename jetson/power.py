"""Power: modes by name, and what the rails draw.

A mode's number means another thing on every board (MAXN_SUPER is 2 on an Orin Nano, 0 on an Orin NX), so modes go by
name here. Their watts are caps on clocks, not budgets of power. Both the list of modes and the one that is set are in
files that everybody may read; only setting one needs root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_sdk.core.errors import BoardError
from edge_sdk.core.sysfs import Tree

CONF = "etc/nvpmodel.conf"
STATUS = "var/lib/nvpmodel/status"

_ATTRIBUTE = re.compile(r"(\w+)=([^\s>]+)")
# Rails that measure everything that goes into the board; without one of them, those that add up to it.
_WHOLE = ("VDD_IN", "POM_5V_IN", "VIN")
_SUM = ("VIN_SYS_5V0", "VDD_GPU_SOC", "VDD_CPU_CV", "VDDQ_VDD2_1V8AO")


@dataclass(frozen=True, slots=True)
class Mode:
    """One power mode."""

    id: int
    name: str  # "MAXN_SUPER", "MODE_30W", "15W"


@dataclass(frozen=True, slots=True)
class Modes:
    """The power modes of a board."""

    known: tuple[Mode, ...]
    current: Mode | None  # None: not told
    default: Mode | None

    def command(self, name: str) -> tuple[str, ...]:
        """Returns the command that sets a mode; it needs root, and some changes ask for a reboot.

        Raises:
            BoardError: the board has no mode of that name.
        """
        plain = _plain(name)
        for mode in self.known:
            if _plain(mode.name) == plain:
                return ("sudo", "nvpmodel", "-m", str(mode.id))
        raise BoardError(f"no power mode {name!r}; this board has {', '.join(m.name for m in self.known) or 'none'}")


@dataclass(frozen=True, slots=True)
class Rail:
    """One supply that an INA3221 measures."""

    name: str  # "VDD_IN"
    power_mw: float


def _plain(name: str) -> str:
    """Boards write one mode as "30W", "MODE_30W" and "MODE 30W"."""
    return name.upper().replace(" ", "_").removeprefix("MODE_")


def modes(tree: Tree) -> Modes:
    """Returns the modes in nvpmodel's configuration, and the one that it noted as set."""
    known, default = parse_conf(tree.text(CONF) or "")
    match = re.search(r"pmode:(\d{1,6})", tree.text(STATUS) or "")
    number = int(match[1]) if match else default
    by_id = {mode.id: mode for mode in known}
    current = by_id.get(number) if number is not None else None
    return Modes(known, current, by_id.get(default) if default is not None else None)


def parse_conf(text: str) -> tuple[tuple[Mode, ...], int | None]:
    """Returns the modes of an nvpmodel.conf and the number of the default one."""
    known, default = [], None
    for line in text.splitlines():
        if not re.match(r"\s*<\s*(POWER_MODEL|PM_CONFIG)\s", line):
            continue
        keys = dict(_ATTRIBUTE.findall(line))
        if keys.get("ID", "").isdecimal() and "NAME" in keys:
            known.append(Mode(int(keys["ID"]), keys["NAME"]))
        elif keys.get("DEFAULT", "").isdecimal():
            default = int(keys["DEFAULT"])
    return tuple(known), default


def parse_query(text: str) -> Mode | None:
    """Returns the mode that `nvpmodel -q` printed: the name, and its number on the next line; warnings may precede."""
    match = re.search(r"^NV Power Mode:\s*(\S.*?)\s*\n\s*(\d{1,6})\s*$", text, re.MULTILINE)
    return Mode(int(match[2]), match[1]) if match else None


def parse_verbose(text: str) -> Modes:
    """Returns the modes that `nvpmodel -p --verbose` printed; it does not tell the current one."""
    found = re.findall(r"POWER_MODEL: ID=(\d{1,6}) NAME=(\S+)", text)
    known = tuple(Mode(int(number), name) for number, name in found)
    default = re.search(r"DEFAULT=\S*?\((\d{1,6})\)", text)
    return Modes(known, None, next((m for m in known if default and m.id == int(default[1])), None))


def rails(tree: Tree) -> list[Rail]:
    """Returns what every supply draws, from the INA3221's hwmon files, or the iio ones of JetPack 4."""
    return [*_hwmon(tree), *_iio(tree)]


def _hwmon(tree: Tree) -> list[Rail]:
    found = []
    for name in tree.find("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        folder, _, label = name.rpartition("/")
        channel = label.removeprefix("in").removesuffix("_label")
        volts, amps = tree.number(f"{folder}/in{channel}_input"), tree.number(f"{folder}/curr{channel}_input")
        title = tree.text(name)
        if title and title != "NC" and volts is not None and amps is not None:  # mV, mA
            found.append(Rail(title, volts * amps / 1000.0))
    return found


def _iio(tree: Tree) -> list[Rail]:
    found = []
    for name in tree.find("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        folder, _, label = name.rpartition("/")
        power, title = tree.number(f"{folder}/in_power{label.removeprefix('rail_name_')}_input"), tree.text(name)
        if title and title != "NC" and power is not None:
            found.append(Rail(title, power))
    return found


def total_mw(found: list[Rail]) -> float | None:
    """Returns what the whole board draws; None where the rails do not add up to that.

    Rails overlap (VDD_IN holds all others), so never all are added.
    """
    by_name = {rail.name: rail.power_mw for rail in found}
    for name in _WHOLE:
        if name in by_name:
            return by_name[name]
    if _SUM[0] not in by_name:
        return None
    return sum(by_name.get(name, 0.0) for name in _SUM)


__all__ = ["Mode", "Modes", "Rail", "modes", "parse_conf", "parse_query", "parse_verbose", "rails", "total_mw"]
