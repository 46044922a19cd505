"""`edge-coordinator enroll NAME > device.toml`: lets a device take part, and prints where it has to connect.

With the embedded broker the device gets a password of its own, which is printed this once; with another broker its
user is made there.
"""

from __future__ import annotations

import argparse
import json
import sys

from coordinator.commands.flags import config_argument
from coordinator.commands.serve import broker_folder, federation_of
from coordinator.config import CoordinatorConfig, read_config
from coordinator.store.maintenance import enrol
from edge_sdk.core.program import say
from edge_sdk.core.spec import FederationSpec, ModalitySpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("name", help="id of the device: letters, digits, - and _")
    config_argument(parser)
    parser.add_argument("--host", help="where the device reaches the broker; default: as in the configuration")
    parser.add_argument("--state-dir", help="where the device keeps its state; default: NAME-state beside its file")


def run(args: argparse.Namespace) -> int:
    """Enrols the device and prints its configuration."""
    config = read_config(args.config)
    spec = federation_of(config, args.config)
    enrol(config.store.dir, args.name)
    host = args.host or ("127.0.0.1" if config.broker.host in ("", "0.0.0.0") else config.broker.host)
    state = args.state_dir or f"{args.name}-state"
    say(device_toml(args.name, spec, config, host=host, password=_password(config, args.name), state=state))
    if not args.host and config.broker.host in ("", "0.0.0.0", "127.0.0.1", "localhost"):
        sys.stderr.write(f"{args.name} will look for the broker on its own machine; --host names another one\n")
    if config.admission.enrolment == "open":
        sys.stderr.write("enrolment is open: the coordinator takes every device (enrolment under [admission])\n")
    return 0


def _password(config: CoordinatorConfig, name: str) -> str:
    if not config.broker.embedded:
        return ""
    from edge_sdk.transport.passwords import add_user

    folder = broker_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    return add_user(folder / "broker.passwd", name)


def device_toml(
    name: str, spec: FederationSpec, config: CoordinatorConfig, *, host: str, password: str, state: str
) -> str:  # fmt: skip
    """Returns a device's configuration; it works as it is, with made-up sensors."""
    secret = f"password = {json.dumps(password)}" if password else '# password_file = "/etc/edge-sdk/password"'
    lines = [
        "[device]",
        f'id = "{name}"',
        f'federation = "{spec.name}"',
        f"state_dir = {json.dumps(state)}",
        "",
        "[broker]",
        f"host = {json.dumps(host)}",
        f"port = {config.broker.port}",
        f'username = "{name}"',
        secret,
    ]
    for m in spec.modalities:
        shape = " × ".join(map(str, m.shape))
        rate = f" at {m.rate_hz:g} Hz" if m.rate_hz else ""
        lines += [
            "",
            f"# {m.name}: windows of {shape}{rate}; `edge-sdk detect` finds what is connected",
            f"[sensors.{m.name}]",
        ]
        lines += ['driver = "synthetic"  # made up: put the real one here', f"options = {{ {_options(m)} }}"]
    lines += ["", "# labels that `edge-sdk label` sends; without any label a device predicts but does not train"]
    lines += ["[labels.keys]", 'source = "mqtt"']
    return "\n".join(lines)


def _options(modality: ModalitySpec) -> str:
    """Returns what makes the synthetic sensor deliver samples of the modality's shape."""
    kind, *sizes = {
        1: ("feature", "channels"), 2: ("sine", "channels"), 3: ("image", "channels", "height", "width")
    }[len(modality.shape)]  # fmt: skip
    rate = f", rate_hz = {modality.rate_hz:g}" if modality.rate_hz else ""
    given = ", ".join(f"{name} = {n}" for name, n in zip(sizes, modality.shape, strict=False))
    return f'kind = "{kind}", {given}{rate}'


__all__ = ["add_arguments", "device_toml", "run"]
