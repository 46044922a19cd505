"""A device written by somebody else: from docs/protocol.md alone, without a line of this project.

Only the standard library, paho-mqtt, msgpack, zstandard and numpy. Whatever had to be guessed here is a fault of the
document.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import paho.mqtt.client as paho
import zstandard

Plain = dict[str, Any]
Model = dict[str, np.ndarray]  # module → flat float32 params

PREAMBLE = struct.Struct("<4sBBH16sIIQ16sI")  # §3, without the CRC
PATIENCE_S = 30.0


def blake(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# §9.2: tensors of a module, (name, shape); float32 params all of them.


def normalised(prefix: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{prefix}.bias", (width,)), (f"{prefix}.weight", (width,))]


def encoder_tensors(modality: Plain, dim: int) -> list[tuple[str, tuple[int, ...]]]:
    shape, options = modality["shape"], modality["encoder_config"]
    kind = modality["encoder"] if modality["encoder"] != "auto" else {1: "mlp", 2: "cnn1d", 3: "cnn2d"}[len(shape)]
    if kind == "mlp":
        hidden = options.get("hidden", 64)
        first = [("body.0.bias", (hidden,)), ("body.0.weight", (hidden, shape[0]))]
        return [*first, *normalised("body.1", hidden), ("body.3.bias", (dim,)), ("body.3.weight", (dim, hidden))]
    if kind == "cnn1d":
        width, kernel = options.get("width", 24), options.get("kernel", 5)
        widths, kernels = (shape[0], width, 2 * width, 2 * width), ((kernel + 4,), (kernel,), (kernel,))
        out = 2 * widths[-1]
    else:
        width = options.get("width", 16)
        widths, kernels = (shape[0], width, 2 * width, 2 * width, 4 * width), ((3, 3),) * 4
        out = widths[-1]
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for i, kernel_shape in enumerate(kernels):
        tensors.append((f"body.{i}.0.weight", (widths[i + 1], widths[i], *kernel_shape)))
        tensors += normalised(f"body.{i}.1", widths[i + 1])
    return [*tensors, ("out.bias", (dim,)), ("out.weight", (dim, out))]


def fusion_tensors(spec: Plain) -> list[tuple[str, tuple[int, ...]]]:
    inputs, classes = len(spec["modalities"]) * spec["model"]["feature_dim"], len(spec["classes"])
    if spec["model"]["fusion"] == "linear":
        return [("linear.bias", (classes,)), ("linear.weight", (classes, inputs))]
    hidden = spec["model"]["hidden"]
    first = [("layers.0.bias", (hidden,)), ("layers.0.weight", (hidden, inputs))]
    return [*first, ("layers.2.bias", (classes,)), ("layers.2.weight", (classes, hidden))]


def layout(spec: Plain) -> dict[str, list[int]]:
    """Returns module → lengths of its rows (§4.1), tensors in name order."""
    dim = spec["model"]["feature_dim"]
    modules = {f"encoder.{m['name']}": encoder_tensors(m, dim) for m in spec["modalities"]}
    modules["fusion"] = fusion_tensors(spec)
    rows = {}
    for name in sorted(modules):
        rows[name] = []
        for _, shape in sorted(modules[name]):
            size = int(np.prod(shape))
            rows[name] += [size // shape[0]] * shape[0] if len(shape) > 1 else [size]
    return rows


@dataclass
class Update:
    """What goes into an update object; tests bend it."""

    header: Plain
    packed: bytes  # after the tensor step, before the byte steps
    plain: bytes  # scales
    payload: bytes = b""

    def object(self) -> bytes:
        squeezed = zstandard.ZstdCompressor(3).compress(self.packed)
        header = {**self.header, "sizes": [len(self.packed), len(squeezed)]}
        raw = msgpack.packb(header)
        return b"EDSU" + struct.pack("<I", len(raw)) + raw + squeezed + self.plain + self.payload


def quantise(change: Model, rows: Mapping[str, list[int]]) -> tuple[list[Plain], bytes, bytes]:
    """Returns module parts, packed part and scales of a change: delta | int8 (§4.1)."""
    parts, packed, scales = [], b"", b""
    for name in sorted(change):
        x, lengths = change[name].astype("<f4"), np.array(rows[name])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        scale = (np.maximum.reduceat(np.abs(x), starts) / np.float32(127)).astype("<f4")
        divisor = np.repeat(np.where(scale > 0, scale, np.float32(1)), lengths)
        q = np.rint(x / divisor).astype(np.int8)
        parts.append({"name": name, "params": len(x), "stats": 0, "counters": 0, "packed": len(q)})
        packed += q.tobytes()
        scales += scale.tobytes()
    return parts, packed, scales


def chunks(data: bytes, key: bytes, stride: int, *, digest: bytes = b"") -> list[bytes]:
    """Returns an update object as chunks (§3)."""
    count = -(-len(data) // stride)
    made = []
    for number in range(count):
        payload = data[number * stride : (number + 1) * stride]
        head = PREAMBLE.pack(b"EDSK", 1, 1, 0, key, number, count, len(data), digest or blake(data), stride)
        made.append(head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload)
    return made


def decode_model(data: bytes, published: Plain) -> Model:
    """Returns the params of a model object whose chain is fp32 | zstd, everything checked (§5)."""
    assert len(data) == published["size"]
    assert blake(data).hex() == published["object_digest"]
    assert data[:4] == b"EDSM"
    (length,) = struct.unpack_from("<I", data, 4)
    header = msgpack.unpackb(data[8 : 8 + length])
    assert header["id"] == published["id"]
    assert header["chain"] == published["codec"] == "fp32|zstd"
    first, last = header["sizes"]
    packed = zstandard.ZstdDecompressor().decompress(data[8 + length : 8 + length + last], max_output_size=first)
    params, start = {}, 0
    for part in header["modules"]:
        assert part["packed"] == 4 * part["params"]
        params[part["name"]] = np.frombuffer(packed, "<f4", part["params"], start)
        start += part["packed"]
    assert start == first == len(packed)
    assert len(data) == 8 + length + last  # no stats, no counters, no extras
    assert blake(b"".join(params[name].tobytes() for name in sorted(params))).hex() == header["id"]["digest"]
    return params


@dataclass
class Inbox:
    """What came, by topic."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def put(self, topic: str, payload: bytes) -> None:
        with self.news:
            self.messages.append((topic, payload))
            self.news.notify_all()

    def take(self, wanted: Callable[[str, bytes], bool], seconds: float = PATIENCE_S) -> bytes:
        """Removes and returns the first message that is wanted; TimeoutError if none comes."""
        until = time.monotonic() + seconds
        with self.news:
            while True:
                for i, (topic, payload) in enumerate(self.messages):
                    if wanted(topic, payload):
                        del self.messages[i]
                        return payload
                if not self.news.wait(until - time.monotonic()):
                    raise TimeoutError("nothing of the kind came")


class ForeignClient:
    """One device."""

    def __init__(self, host: str, port: int, *, user: str, password: str, federation: str) -> None:
        self.device = user
        self.root = f"edge/1/{federation}"
        self.incarnation = secrets.randbits(64)
        self.sequence = 0
        self.inbox = Inbox()
        self.spec: Plain = {}
        self.spec_digest = ""
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=user, clean_session=True, protocol=paho.MQTTv311
        )
        self._client.username_pw_set(user, password)
        self._client.on_message = lambda client, data, message: self.inbox.put(message.topic, message.payload)
        connected = threading.Event()
        self._client.on_connect = lambda *given: connected.set()
        self._client.will_set(self.mine("status"), self.status("offline"), qos=1, retain=True)
        self._client.connect(host, port)
        self._client.loop_start()
        assert connected.wait(PATIENCE_S)

    def mine(self, kind: str) -> str:
        return f"{self.root}/device/{self.device}/{kind}"

    def status(self, state: str) -> bytes:
        modalities = [m["name"] for m in self.spec.get("modalities", ())]
        plain = {"device": self.device, "state": state, "incarnation": self.incarnation,
                 "spec_digest": self.spec_digest, "modalities": modalities, "software": "foreign 1"}  # fmt: skip
        return bytes(msgpack.packb(plain))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def join(self) -> None:
        """§7.1: subscribe, read the spec, say who we are."""
        topics = [f"{self.root}/spec", f"{self.root}/model/head", *map(self.mine, ("task", "reply", "label"))]
        self._client.subscribe([(topic, 1) for topic in topics])
        message = msgpack.unpackb(self.inbox.take(lambda t, p: t == f"{self.root}/spec"))
        assert blake(message["spec"].encode()).hex() == message["digest"]
        self.spec, self.spec_digest = json.loads(message["spec"]), message["digest"]
        self.publish(self.mine("status"), self.status("online"), retain=True)

    def head(self, least: int = 0) -> Plain:
        """Returns a head whose newest version has at least this number."""
        topic = f"{self.root}/model/head"
        found: Plain = msgpack.unpackb(
            self.inbox.take(lambda t, p: t == topic and msgpack.unpackb(p)["newest"]["id"]["number"] >= least)
        )
        return found

    def fetch_slots(self, published: Plain) -> bytes:
        """§7.4: reads the retained chunks of a version."""
        topics = [f"{self.root}/model/{published['slot']}/{i}" for i in range(published["chunks"])]
        self._client.subscribe([(topic, 1) for topic in topics])
        return self._assemble([self.inbox.take(lambda t, p, w=topic: t == w) for topic in topics], published)

    def fetch_by_question(self, published: Plain) -> bytes:
        """§7.4: asks the coordinator itself."""
        self.ask(want="model", version=published["id"])
        reply = self.mine("reply")
        got: dict[int, bytes] = {}
        while len(got) < published["chunks"]:
            chunk = self.inbox.take(lambda t, p: t == reply and p[:4] == b"EDSK")
            got[PREAMBLE.unpack_from(chunk)[5]] = chunk
        return self._assemble([got[i] for i in sorted(got)], published)

    def _assemble(self, parts: list[bytes], published: Plain) -> bytes:
        version = published["id"]
        name = f"model/{version['lineage']}/{version['number']}/{version['digest']}/{published['slot']}"
        data = b""
        for number, chunk in enumerate(parts):
            magic, protocol, kind, zero, key, i, count, total, digest, stride = PREAMBLE.unpack_from(chunk)
            payload = chunk[64:]
            assert (magic, protocol, kind, zero) == (b"EDSK", 1, 2, 0)
            assert key == blake(name.encode())
            assert (i, count, total) == (number, published["chunks"], published["size"])
            assert digest.hex() == published["object_digest"]
            assert struct.unpack_from("<I", chunk, 60)[0] == zlib.crc32(payload, zlib.crc32(chunk[:60]))
            assert len(payload) == min(stride, total - i * stride)
            data += payload
        return data

    def ask(self, **fetch: Any) -> None:
        self.publish(self.mine("fetch"), msgpack.packb(fetch))

    def task(self) -> Plain:
        self.ask(want="task")
        found: Plain = msgpack.unpackb(self.inbox.take(lambda t, p: t == self.mine("task")))
        return found

    def reply(self, key: Plain, seconds: float = PATIENCE_S) -> Plain:
        """Returns the next reply to one update."""

        def wanted(topic: str, payload: bytes) -> bool:
            return topic == self.mine("reply") and payload[:4] != b"EDSK" and msgpack.unpackb(payload).get("key") == key

        found: Plain = msgpack.unpackb(self.inbox.take(wanted, seconds))
        return found

    def update(self, task: Plain, seed: int) -> Update:
        """Returns a made-up update that answers a task."""
        rows, rng = layout(self.spec), np.random.default_rng(seed)
        change = {name: rng.normal(0, 0.01, sum(lengths)) for name, lengths in rows.items()}
        parts, packed, scales = quantise(change, rows)
        self.sequence += 1
        header = {
            "key": {"device": self.device, "incarnation": self.incarnation, "sequence": self.sequence},
            "task": task["id"], "base": task["base"], "spec_digest": self.spec_digest, "kind": "delta",
            "chain": "".join(self.spec["codec"]["up"].split()), "modules": parts, "num_samples": 64, "num_steps": 5,
            "modalities": task["plan"]["modalities"],
        }  # fmt: skip
        return Update(header, packed, scales)

    def parts(self, data: bytes, key: Plain, stride: int = 4096, *, digest: bytes = b"") -> list[bytes]:
        named = (digest or blake(data)).hex()
        name = f"update/{key['device']}/{key['incarnation']}/{key['sequence']}/{named}"
        return chunks(data, blake(name.encode()), stride, digest=digest)

    def send(self, parts: list[bytes]) -> None:
        for part in parts:
            self.publish(self.mine("update"), part)

    def deliver(self, update: Update) -> Plain:
        """Sends an update and returns its reply."""
        key = update.header["key"]
        self.send(self.parts(update.object(), key))
        return self.reply(key)
