from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.core.sysfs import Tree
from jetson import board
from jetson.board import identify, is_jetson
from tests.helpers.boards import BOARDS, NAMES, change, copy

EXPECTED = {
    "nano": ("Jetson Nano", "tegra210", "5.3", "32.7.4", "4.6.1", "10.2", "8.2.1"),
    "tx2": ("Jetson TX2", "tegra186", "6.2", "32.7.4", "4.6.1", "10.2", "8.2.1"),
    "xavier_nx": ("Jetson Xavier NX", "tegra194", "7.2", "35.4.1", "5.1.2", "11.4", "8.5.2"),
    "orin_nano_super": ("Jetson Orin Nano 8 GB Super", "tegra234", "8.7", "36.4.3", "6.2", "12.6", "10.3.0.30"),
    "orin_nx": ("Jetson Orin NX 16 GB Super", "tegra234", "8.7", "36.4.4", "6.2.1", "12.6", "10.3.0.30"),
    "agx_orin": ("Jetson AGX Orin 64 GB", "tegra234", "8.7", "36.4.4", "6.2.1", "12.6", "10.3.0.30"),
    "agx_orin_jp7": ("Jetson AGX Orin 64 GB", "tegra234", "8.7", "39.2.0", "7.2", "13.2", "10.16.2.5"),
    "thor": ("Jetson AGX Thor", "tegra264", "11.0", "38.2.0", "7.0", "13.0", "10.13.2.6"),
}


@pytest.mark.parametrize("name", NAMES)
def test_recorded_board_is_known(name: str) -> None:
    facts = identify(Tree(BOARDS / name))
    title, soc, capability, l4t, jetpack, cuda, tensorrt = EXPECTED[name]
    assert (facts.name, facts.soc, facts.capability) == (title, soc, capability)
    assert (facts.system, facts.release) == (f"L4T {l4t}", f"JetPack {jetpack}")
    assert (facts.cuda, facts.tensorrt) == (cuda, tensorrt)
    assert facts.cudnn
    assert facts.memory_mb is not None
    assert facts.memory_mb > 3900
    assert facts.warnings == ()


def test_this_machine_is_none(tmp_path: Path) -> None:
    assert not is_jetson(Tree(tmp_path))


def test_a_carrier_is_not_taken_for_the_module(tmp_path: Path) -> None:
    """An Orin NX on a Nano's carrier was seen to call itself a Nano: the module's number counts."""
    root = copy("orin_nx", tmp_path)
    change(root, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0"})
    assert identify(Tree(root)).name == "Jetson Orin NX 16 GB Super"


def test_unknown_release_is_a_warning(tmp_path: Path) -> None:
    root = copy("orin_nx", tmp_path)
    change(root, {"etc/nv_tegra_release": "# R36 (release), REVISION: 9.1, GCID: 1, BOARD: generic\n"})
    facts = identify(Tree(root))
    assert facts.release == "JetPack 6"
    assert facts.cuda == "12.6"  # told by the installed files
    assert facts.warnings == ("L4T 36.9.1 is not known; taken for JetPack 6",)
    change(root, {"etc/nv_tegra_release": "# R47 (release), REVISION: 1.0\n"})
    assert identify(Tree(root)).warnings == ("L4T 47.1.0 is not known; no advice is given for it",)
    assert identify(Tree(root)).release == ""


def test_a_later_patch_of_a_known_release_is_that_release(tmp_path: Path) -> None:
    root = copy("orin_nx", tmp_path)
    change(root, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.99\n"})
    assert identify(Tree(root)).warnings == ()


def test_unknown_module_and_chip_are_warnings(tmp_path: Path) -> None:
    root = copy("thor", tmp_path)
    change(root, {"proc/device-tree/compatible": "nvidia,p9999-0001\0nvidia,tegra999\0"})
    facts = identify(Tree(root))
    assert facts.name == "NVIDIA Jetson AGX Thor Developer Kit"
    assert facts.capability == ""
    assert [w.split(";")[0] for w in facts.warnings] == ["module p9999-0001 is not known", "tegra999 is not known"]


def test_in_a_container_the_package_tells_the_release(tmp_path: Path) -> None:
    root = copy("orin_nx", tmp_path)
    change(root, {"etc/nv_tegra_release": None})
    assert identify(Tree(root)).system == "L4T 36.4.4"
    change(root, {"var/lib/dpkg/status": "", "usr/local/cuda/version.json": "{broken"})
    facts = identify(Tree(root))
    assert (facts.system, facts.cuda) == ("", "")
    assert "in a container" in facts.warnings[0]


def test_a_package_that_was_removed_is_not_installed(tmp_path: Path) -> None:
    text = "Package: libnvinfer10\nStatus: deinstall ok config-files\nVersion: 10.3\nDescription: x\n Package: y\n"
    assert board.installed(Tree(change(tmp_path, {"var/lib/dpkg/status": text}))) == {}


def test_every_release_has_a_generation() -> None:
    table = board.table()
    for l4t, brought in table.releases.items():
        assert set(brought) == {"jetpack", "cuda", "tensorrt", "cudnn"}
        assert brought["jetpack"].startswith(board.generation(l4t))
