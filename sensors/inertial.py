"""What the inertial drivers share: one device, whose quantities are modalities of their own."""

from __future__ import annotations

from collections.abc import Sequence


def sections(driver: str, options: str, channels: Sequence[str]) -> str:
    """Returns TOML lines with one modality per quantity, all from one device.

    Args:
        driver: registry name.
        options: of the driver, as the inside of an inline table.
        channels: quantities that it delivers; the first one's section sets the device up.
    """
    first, *more = channels
    lines = [
        f"[sensors.{first}]",
        f'driver = "{driver}"',
        f'columns = ["{first}"]',
        f"options = {{ {options} }}",
    ]
    for channel in more:
        lines += ["", f"[sensors.{channel}]", f'from = "{first}"', f'columns = ["{channel}"]']
    return "\n".join(lines)


__all__ = ["sections"]
