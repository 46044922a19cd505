"""Temperature: the zone that counts, and how far it is from being slowed down.

On Orin and Thor `tj` is the hottest of all sensors, made by the firmware; older boards have one zone per unit. Zones of
units that are powered down are left out by `core.sysfs`, which reads them as −256 °C or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.core.sysfs import Tree, Zone, hottest, zones


@dataclass(frozen=True, slots=True)
class Thermal:
    """How hot the board is."""

    zones: tuple[Zone, ...]
    junction: Zone | None  # the one that counts
    cooling: tuple[str, ...]  # devices that cool right now by slowing down or by a fan: "cpufreq-cpu0", "pwm-fan"

    @property
    def margin_c(self) -> float | None:
        """Degrees until the kernel slows the board down; None where it does not say."""
        limits = [zone.passive_c - zone.temp_c for zone in self.zones if zone.passive_c is not None]
        return min(limits, default=None)


def read(tree: Tree) -> Thermal:
    """Returns the board's temperatures."""
    found = zones(tree)
    named = next((z for z in found if z.name.lower().removesuffix("-thermal").removesuffix("-therm") == "tj"), None)
    return Thermal(tuple(found), named or hottest(found), tuple(_cooling(tree)))


def _cooling(tree: Tree) -> list[str]:
    folders = tree.find("sys/class/thermal/cooling_device*")
    active = [folder for folder in folders if (tree.number(f"{folder}/cur_state") or 0) > 0]
    return [tree.text(f"{folder}/type") or folder for folder in active]


__all__ = ["Thermal", "read"]
