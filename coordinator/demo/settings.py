"""The demo's configuration files: one for the coordinator, one per device, written where a user can read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.core.spec import FederationSpec

GRAPH = "graph.onnx"  # weights come with each published version


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to reach the broker."""

    port: int
    secrets: Path  # folder with one password file per user

    def broker(self, user: str) -> str:
        """Returns the [broker] section of a user."""
        return (
            f'[broker]\nhost = "127.0.0.1"\nport = {self.port}\nusername = "{user}"\n'
            f"password_file = {json.dumps(str(self.secrets / user))}\n"
        )


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device of the demo."""

    name: str
    recording: Path
    late: str  # modality that arrives late
    delay_s: float  # stream time
    speed: float  # seconds of stream time per second


def coordinator_toml(
    spec: FederationSpec, folder: Path, credentials: Credentials, *, dataset: str, data: Path | None, updates: int,
    seconds: float, seed: int,
) -> Path:  # fmt: skip
    """Writes `coordinator.toml` and the federation beside it."""
    (folder / "federation.json").write_text(json.dumps(spec.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    text = (
        '[federation]\npath = "federation.json"\n\n'
        f"{credentials.broker('coordinator')}\n"
        '[store]\ndir = "store"\ncheckpoint_every = 25\n\n'
        "[publish]\nmin_interval_s = 0.25\nmin_hold_s = 1.0\n\n"
        f"[evaluate]\ndataset = {json.dumps(dataset)}\nevery_updates = 1\n"
        f"{'' if data is None else f'data = {json.dumps(str(data.resolve()))}'}\n\n"
        f"[schedule]\nseed = {seed}\n\n"
        f"[stop]\nupdates = {updates}\nseconds = {seconds:g}\n\n"
        '[admission]\nenrolment = "open"\n'
    )
    path = folder / "coordinator.toml"
    path.write_text(text, encoding="utf-8")
    return path


def device_toml(spec: FederationSpec, plan: DevicePlan, folder: Path, credentials: Credentials, *, seed: int) -> Path:
    """Writes `devices/<name>.toml`."""
    replayed = f"path = {json.dumps(str(plan.recording))}, loop = true, align_s = {spec.window.length_s:g}"
    lines = [
        f'[device]\nid = "{plan.name}"\nfederation = "{spec.name}"\nseed = {seed}',
        f"state_dir = {json.dumps(str(folder / 'devices' / plan.name))}\nstream_speed = {plan.speed:g}\n",
        credentials.broker(plan.name),
    ]
    for m in spec.modality_names:
        delay = plan.delay_s if m == plan.late else 0.0
        lines.append(
            f'[sensors.{m}]\ndriver = "replay"\nbuffer_s = {max(30.0, 2 * plan.delay_s):g}\n'
            f"options = {{ {replayed}, delay_s = {delay:g} }}\n"
        )
    lines.append(f'[labels.truth]\nsource = "file"\noptions = {{ {replayed} }}\n')
    lines.append(f"[inference]\ngraph = {json.dumps(str(folder / GRAPH))}\n")
    lines.append("[reservoir]\nround_windows = 600\nmin_windows = 64\npersist = false\n")
    path = folder / "devices" / f"{plan.name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


__all__ = ["GRAPH", "Credentials", "DevicePlan", "coordinator_toml", "device_toml"]
