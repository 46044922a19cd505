"""Somebody else's device, written from docs/protocol.md alone, against a real coordinator on real brokers."""

from __future__ import annotations

import ast
import secrets
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.codecs.steps import Rows
from edge_sdk.core.spec import FederationSpec, ModalitySpec, ModelSpec
from edge_sdk.models import build
from tests.helpers import foreign_client
from tests.helpers.brokers import Embedded, Mosquitto, broker  # noqa: F401  fixture
from tests.helpers.coordinators import Program, served, write_config
from tests.helpers.foreign_client import ForeignClient, Update

pytestmark = pytest.mark.timeout(120)

SPEC = FederationSpec(
    name="home",
    modalities=(
        ModalitySpec(name="acc", shape=(3, 128), rate_hz=50.0),
        ModalitySpec(name="mood", shape=(7,)),
        ModalitySpec(name="cam", shape=(3, 16, 16), encoder_config={"width": 8}),
    ),
    classes=("sit", "walk"),
    codec={"up": "delta | int8 | zstd"},
)


@pytest.fixture
def center(broker: Mosquitto | Embedded, tmp_path: Path) -> Iterator[Program]:  # noqa: F811
    config = write_config(tmp_path / "center", SPEC, broker.config("coordinator"))
    with served(config) as program:
        yield program


@pytest.fixture
def client(broker: Mosquitto | Embedded, center: Program) -> Iterator[ForeignClient]:  # noqa: F811
    keys = broker.config("d1")
    made = ForeignClient(keys.host, keys.port, user="d1", password=keys.password, federation="home")
    made.join()
    yield made
    made.close()


def payload(update: Update, name: str, value: float) -> Update:
    header = {**update.header, "payload": [{"name": name, "type": 1, "shape": []}]}
    return replace(update, header=header, payload=struct.pack("<f", value))


def with_header(update: Update, **fields: object) -> Update:
    return replace(update, header={**update.header, **fields})


def with_base(update: Update, **fields: object) -> Update:
    return with_header(update, base={**update.header["base"], **fields})


def wrong_shape(update: Update) -> Update:
    parts = [dict(part) for part in update.header["modules"]]
    parts[-1]["params"] += 1
    parts[-1]["packed"] += 1
    return replace(with_header(update, modules=parts), packed=update.packed + b"\0")


REFUSED = {
    "nan": (lambda u: replace(u, plain=struct.pack("<f", float("nan")) + u.plain[4:]), "non_finite"),
    "infinite": (lambda u: replace(u, plain=struct.pack("<f", 3e38) + u.plain[4:]), "non_finite"),
    "shape": (wrong_shape, "shape"),
    "unknown base": (lambda u: with_base(u, number=99), "unknown_base"),
    "digest of another base": (lambda u: with_base(u, digest="0" * 32), "unknown_base"),
    "base of another lineage": (lambda u: with_base(u, lineage=secrets.token_hex(16)), "unknown_base"),
    "payload of another method": (lambda u: payload(u, "prototypes", 1.0), "payload"),
    "payload out of range": (lambda u: payload(u, "distance.acc", 2.5), "payload"),
    "unknown task": (lambda u: with_header(u, task="nobody-gave-it"), "unknown_task"),
    "another spec": (lambda u: with_header(u, spec_digest="0" * 32), "spec_changed"),
    "an unknown field": (lambda u: with_header(u, colour="red"), None),
    "no samples": (lambda u: with_header(u, num_samples=0), "malformed"),
    "a modality of nobody": (lambda u: with_header(u, modalities=["smell"]), "malformed"),
    "bytes after the end": (lambda u: replace(u, payload=b"\0"), "malformed"),
}  # fmt: skip


def test_the_helper_knows_nothing_of_this_project() -> None:
    tree = ast.parse(Path(foreign_client.__file__).read_text(encoding="utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"msgpack", "numpy", "paho", "zstandard"}


LAYOUTS = {
    "as it comes": SPEC,
    "mlp fusion": SPEC.model_copy(update={"model": ModelSpec(feature_dim=24, fusion="mlp", hidden=40)}),
    "options of encoders": SPEC.model_copy(
        update={
            "modalities": (
                ModalitySpec(name="b", shape=(2, 40), encoder_config={"width": 6, "kernel": 3}),
                ModalitySpec(name="a", shape=(9,), encoder="mlp", encoder_config={"hidden": 10}),
            )
        }
    ),
}


@pytest.mark.parametrize("which", LAYOUTS)
def test_the_model_follows_from_the_spec_as_the_document_says(which: str) -> None:
    spec = LAYOUTS[which]
    told = foreign_client.layout(spec.model_dump(mode="json"))
    ours = build.layout(spec)
    assert told == {name: Rows.of(module).lengths.tolist() for name, module in ours.items()}


def test_a_foreign_device_takes_part(client: ForeignClient, center: Program) -> None:
    published = client.head()["newest"]
    first = foreign_client.decode_model(client.fetch_slots(published), published)
    assert {name: sum(rows) for name, rows in foreign_client.layout(client.spec).items()} == {
        name: len(params) for name, params in first.items()
    }
    again = foreign_client.decode_model(client.fetch_by_question(published), published)
    assert all((again[name] == first[name]).all() for name in first)

    task = client.task()
    assert (task["kind"], task["base"]) == ("train", published["id"])
    update = payload(client.update(task, seed=1), "distance.acc", 0.25)
    key = update.header["key"]
    parts = client.parts(update.object(), key)
    assert len(parts) > 3
    client.send([*reversed(parts[2:]), parts[0], *parts[2:4]])  # out of order, some twice, one not yet
    missing = client.reply(key)
    assert (missing["kind"], missing["chunks"]) == ("missing", [1])
    client.send(parts[1:2])
    accepted = client.reply(key)
    assert accepted["kind"] == "accepted"
    assert accepted["version"]["number"] == published["id"]["number"] + 1
    client.send(parts)  # all of it once more: the same reply, nothing is applied twice
    assert client.reply(key) == accepted
    client.ask(want="update", key=key, digest=foreign_client.blake(update.object()).hex())
    assert client.reply(key) == accepted

    newest = client.head(least=1)["newest"]
    second = foreign_client.decode_model(client.fetch_slots(newest), newest)
    assert newest["id"]["number"] == 1
    assert any((second[name] != first[name]).any() for name in first)
    assert len(center.events("UpdateApplied")) == 1


def test_what_is_wrong_is_refused_by_its_reason_and_changes_nothing(client: ForeignClient, center: Program) -> None:
    for number, (bend, reason) in enumerate(REFUSED.values()):
        update = bend(client.update(client.task(), seed=number))
        if reason is None:  # the header cannot be read, so nobody can be answered; the task stays open
            client.send(client.parts(update.object(), update.header["key"]))
            continue
        reply = client.deliver(update)
        assert (reply["kind"], reply.get("reason")) == ("rejected", reason), reply
        assert reply["version"]["number"] == 0
    assert not center.events("UpdateApplied")

    good = client.update(client.task(), seed=100)
    assert client.deliver(good)["kind"] == "accepted"
    other = with_header(client.update(client.task(), seed=101), key=good.header["key"])
    assert client.deliver(other)["reason"] == "sequence_reused"
    assert len(center.wait_for("UpdateApplied")) == 1


def test_damaged_chunks_count_as_lost(client: ForeignClient, center: Program) -> None:
    update = client.update(client.task(), seed=1)
    key, data = update.header["key"], update.object()
    whole = client.parts(data, key)
    client.send([whole[0][:-7], whole[1][:500] + b"\0" + whole[1][501:], *whole[2:]])
    with pytest.raises(TimeoutError):
        client.reply(key, seconds=1.5)  # chunk 0 says whose update it is: without it nobody can be asked
    client.ask(want="update", key=key, digest=foreign_client.blake(data).hex())
    assert client.reply(key)["chunks"] == [0, 1]
    lie = b"\1" * 16
    client.send(client.parts(data, key, digest=lie))  # everything arrives, and is not what was announced
    client.ask(want="update", key=key, digest=lie.hex())
    assert client.reply(key)["kind"] == "unknown"
    client.ask(want="update", key=key, digest=foreign_client.blake(data).hex())
    assert client.reply(key)["chunks"] == [0, 1]
    client.send(whole[:2])
    assert client.reply(key)["kind"] == "accepted"
    assert len(center.wait_for("UpdateApplied")) == 1


def test_a_stranger_to_the_broker_is_not_let_in(broker: Mosquitto | Embedded, center: Program) -> None:  # noqa: F811
    import paho.mqtt.client as paho

    refused: list[object] = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="d1", protocol=paho.MQTTv311)
    client.username_pw_set("d1", "wrong")
    client.on_connect = lambda c, d, flags, reason, properties: refused.append(reason.is_failure)
    client.connect(broker.host, broker.port)
    for _ in range(100):
        client.loop(0.1)
        if refused:
            break
    client.disconnect()
    assert refused == [True]
