"""The Jetson as a board of the SDK: the entry point `edge_sdk.boards`."""

from __future__ import annotations

from dataclasses import replace

from edge_sdk.core.boards import Board, Facts, Finding, Readings
from edge_sdk.core.machine import Machine
from edge_sdk.core.sysfs import Tree
from jetson import board, checks, memory, power, thermal


class Jetson(Board):
    """Every Jetson from the Nano to Thor."""

    @classmethod
    def here(cls, tree: Tree) -> bool:
        return board.is_jetson(tree)

    def facts(self) -> Facts:
        return board.identify(self.tree)

    def readings(self) -> Readings:
        heat, mode = thermal.read(self.tree), power.modes(self.tree).current
        return replace(
            super().readings(),
            temp_c=heat.junction.temp_c if heat.junction else None,
            throttle_c=heat.junction.passive_c if heat.junction else None,
            largest_free_mb=memory.read(self.tree).largest_mb,
            power_mode=mode.name if mode else None,
            power_mw=power.total_mw(power.rails(self.tree)),
        )

    def checks(self, machine: Machine) -> list[Finding]:
        return checks.run(machine, self.facts())


__all__ = ["Jetson"]
