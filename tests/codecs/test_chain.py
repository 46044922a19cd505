from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge_sdk.codecs import chain as chain_module
from edge_sdk.codecs import wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.codecs.headers import Limits
from edge_sdk.core.errors import CodecError, ConfigError, PluginError, ShapeMismatch, WireFormatError
from edge_sdk.core.records import Float32, ModelVersion, Segments
from tests.helpers.codec_examples import BASE, LAYOUT, make_update, make_version, norm, random_tensors, same_tensors

CHAINS = [
    "delta|int8|zstd",
    "delta|int8",
    "delta|fp32",
    "delta|fp16|zstd",
    "fp32",
    "fp32|zstd",
    "fp16|zstd",
    "int8|zstd",
]
DOWN = ["fp32", "fp32|zstd", "fp16|zstd", "int8|zstd"]
MISFITS: dict[str, Float32] = {
    "too short": np.zeros(3, np.float32),
    "float64": np.zeros(LAYOUT["fusion"].params),  # type: ignore[dict-item]  # the wrong type is the point
    "two-dimensional": np.zeros((1, LAYOUT["fusion"].params), np.float32),
}


@pytest.mark.parametrize("text", CHAINS)
def test_an_update_comes_back_with_everything_it_said(text: str) -> None:
    update = make_update()
    encoded = Chain(text, LAYOUT).encode_update(update)
    found = Chain(text, LAYOUT).decode_update(encoded.data)
    for field in dataclasses.fields(update):
        if field.name not in ("tensors", "payload"):
            assert getattr(found, field.name) == getattr(update, field.name)
    assert sorted(found.payload) == ["counts", "distances"]
    for name, a in update.payload.items():
        assert np.array_equal(found.payload[name], a)
        assert found.payload[name].dtype == a.dtype
    for name, segments in update.tensors.items():
        assert np.array_equal(found.tensors[name].params, encoded.decoded[name])
        assert np.array_equal(found.tensors[name].stats, segments.stats)
        assert np.array_equal(found.tensors[name].counters, segments.counters)
        assert found.tensors[name].params.flags.writeable
        assert norm(found.tensors[name].params - segments.params) <= 0.02 * norm(segments.params)
    assert encoded.raw_bytes == 4 * (9 + 240 + 8 + 120 + 6 + 96 + 16) + 8
    assert chain_module.finite(found)


@pytest.mark.parametrize("text", ["fp32", "delta|fp32", "fp32|zstd"])
def test_fp32_is_exact_and_leaves_nothing_behind(text: str) -> None:
    update = make_update()
    encoded = Chain(text, LAYOUT).encode_update(update)
    assert same_tensors(Chain(text, LAYOUT).decode_update(encoded.data).tensors, update.tensors)
    assert not any(r.any() for r in encoded.residual.values())


def test_int8_is_within_half_a_step_of_every_row() -> None:
    update = make_update()
    encoded = Chain("delta|int8|zstd", LAYOUT).encode_update(update)
    weight = update.tensors["fusion"].params[6:].reshape(6, 16)
    error = encoded.residual["fusion"][6:].reshape(6, 16)
    steps = np.abs(weight).max(axis=1) / 127
    assert (np.abs(error).max(axis=1) <= 0.5001 * steps).all()
    assert len({float(s) for s in steps}) == 6


def test_a_full_update_becomes_a_delta_against_its_base() -> None:
    base, change = random_tensors(LAYOUT, 1, 1.0), random_tensors(LAYOUT, 2)
    trained = {n: Segments(base[n].params + s.params, s.stats, s.counters) for n, s in change.items()}
    chain = Chain("delta|fp32", LAYOUT)
    encoded = chain.encode_update(make_update(trained, kind="full"), base=base)
    found = chain.decode_update(encoded.data)
    assert found.kind == "delta"
    for n in change:
        assert np.array_equal(found.tensors[n].params, trained[n].params - base[n].params)
        assert np.array_equal(found.tensors[n].stats, trained[n].stats)  # values, never differences
    with pytest.raises(CodecError, match="hand in the base"):
        chain.encode_update(make_update(trained, kind="full"))
    with pytest.raises(ShapeMismatch, match="the base does not have"):
        chain.encode_update(make_update(trained, kind="full"), base={"fusion": base["fusion"]})


@pytest.mark.parametrize("text", ["delta|fp32", "delta|int8", "delta|int8|zstd"])
def test_encoding_leaves_what_it_was_given_as_it_was(text: str) -> None:
    update, base = make_update(), random_tensors(LAYOUT, 1)
    residual = {n: s.params.copy() for n, s in random_tensors(LAYOUT, 2).items()}
    for kind in ("delta", "full"):
        Chain(text, LAYOUT).encode_update(make_update(update.tensors, kind=kind), residual, base)
    assert same_tensors(update.tensors, random_tensors(LAYOUT))
    assert same_tensors(base, random_tensors(LAYOUT, 1))
    assert all(np.array_equal(residual[n], s.params) for n, s in random_tensors(LAYOUT, 2).items())


def test_only_what_was_trained_travels() -> None:
    update = make_update({"fusion": random_tensors(LAYOUT)["fusion"]})
    encoded = Chain("delta|int8|zstd", LAYOUT).encode_update(update)
    assert list(Chain("delta|int8|zstd", LAYOUT).decode_update(encoded.data).tensors) == ["fusion"]


def test_error_feedback_sends_in_the_end_what_was_meant() -> None:
    chain = Chain("delta|int8", LAYOUT)
    meant = np.zeros(LAYOUT["fusion"].params)
    sent = np.zeros_like(meant)
    lost = np.zeros_like(meant)
    residual: dict[str, Float32] = {}
    for seed in range(50):
        tensors = {"fusion": random_tensors(LAYOUT, seed)["fusion"]}
        meant += tensors["fusion"].params
        encoded = chain.encode_update(make_update(tensors), residual)
        residual = encoded.residual
        sent += encoded.decoded["fusion"]
        lost += chain.encode_update(make_update(tensors)).decoded["fusion"]
    assert np.abs(meant - sent - residual["fusion"]).max() < 1e-6
    assert norm(meant - sent) < 0.3 * norm(meant - lost)


def test_the_residual_of_modules_that_stay_at_home_is_kept() -> None:
    chain = Chain("delta|int8", LAYOUT)
    first = chain.encode_update(make_update())
    second = chain.encode_update(make_update({"fusion": random_tensors(LAYOUT, 3)["fusion"]}), first.residual)
    assert np.array_equal(second.residual["encoder.acc"], first.residual["encoder.acc"])
    assert not np.array_equal(second.residual["fusion"], first.residual["fusion"])


def test_full_tensors_take_no_residual() -> None:
    chain, update = Chain("fp16", LAYOUT), make_update(kind="full")
    left = {"fusion": np.ones(LAYOUT["fusion"].params, np.float32)}
    encoded = chain.encode_update(update, left)
    assert encoded.data == chain.encode_update(update).data
    assert encoded.residual == left


@pytest.mark.parametrize("bad", MISFITS.values(), ids=MISFITS)
def test_tensors_that_do_not_fit_are_refused(bad: Float32) -> None:
    chain = Chain("delta|int8", LAYOUT)
    with pytest.raises(ShapeMismatch, match=r"fusion\.params"):
        chain.encode_update(make_update({"fusion": Segments(bad)}))
    with pytest.raises(ShapeMismatch, match="residual of fusion"):
        chain.encode_update(make_update(), {"fusion": bad})
    with pytest.raises(ShapeMismatch, match="not part of this model"):
        chain.encode_update(make_update({"head.acc": Segments(bad)}))


@pytest.mark.parametrize("text", ["fp32", "fp16", "int8", "delta|int8|zstd"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_sent(text: str, value: float) -> None:
    tensors = random_tensors(LAYOUT)
    tensors["fusion"].params[20] = value
    with pytest.raises(CodecError, match="NaN"):
        Chain(text, LAYOUT).encode_update(make_update(tensors))
    tensors = random_tensors(LAYOUT)
    tensors["encoder.acc"].stats[3] = value
    with pytest.raises(CodecError, match=r"encoder\.acc\.stats"):
        Chain(text, LAYOUT).encode_update(make_update(tensors))


def test_finite_sees_every_part_of_an_update() -> None:
    assert chain_module.finite(make_update())
    huge = random_tensors(LAYOUT)
    huge["fusion"].params[:] = 3e38  # the squares overflow, the values do not
    assert chain_module.finite(make_update(huge))
    for segment in ("params", "stats"):
        tensors = random_tensors(LAYOUT)
        getattr(tensors["encoder.acc"], segment)[-1] = np.nan
        assert not chain_module.finite(make_update(tensors))
    assert not chain_module.finite(make_update(payload={"d": np.array([np.inf])}))


def test_peek_reads_the_header_alone() -> None:
    encoded = Chain("delta|int8|zstd", LAYOUT).encode_update(make_update())
    header = chain_module.peek_update(encoded.data)
    assert header == Chain("fp32", LAYOUT).peek_update(encoded.data)
    assert (header.key, header.base, header.task) == (make_update().key, BASE, "task-9")
    assert header.chain == "delta|int8|zstd"
    assert [m.name for m in header.modules] == sorted(LAYOUT)


@pytest.mark.parametrize("text", DOWN)
def test_a_version_is_named_by_what_devices_decode(text: str) -> None:
    chain = Chain(text, LAYOUT)
    exact = random_tensors(LAYOUT, 5, 1.0)
    encoded = chain.roundtrip_model(exact)
    version = make_version(encoded.decoded, 42)
    extras = {"prototypes": np.ones((3, 4), np.float32)}
    data = chain.seal_model(encoded, version.id, extras)
    found = chain.decode_model(data)
    assert found.id == version.id
    assert same_tensors(found.tensors, encoded.decoded)
    assert np.array_equal(found.extras["prototypes"], extras["prototypes"])
    assert chain_module.peek_model(data).id == version.id


def test_a_published_version_does_not_change_with_the_model_that_is_mixed_on() -> None:
    exact = random_tensors(LAYOUT, 5)
    chain = Chain("fp32", LAYOUT)
    encoded = chain.roundtrip_model(exact)
    before = wire.tensors_digest(encoded.decoded)
    for segments in exact.values():
        segments.params[:] += 1
        segments.stats[:] += 1
        segments.counters[:] += 1
    assert wire.tensors_digest(encoded.decoded) == before
    found = chain.decode_model(chain.seal_model(encoded, make_version(encoded.decoded).id))
    assert wire.tensors_digest(found.tensors) == before


@pytest.mark.parametrize("text", ["delta|int8|zstd", "delta|fp32", "delta|fp16|zstd"])
def test_a_version_can_travel_as_a_delta(text: str) -> None:
    chain = Chain(text, LAYOUT)
    base = make_version(random_tensors(LAYOUT, 1, 1.0), 41)
    change = random_tensors(LAYOUT, 2)
    exact = {n: Segments(s.params + change[n].params, s.stats, s.counters) for n, s in base.tensors.items()}
    encoded = chain.roundtrip_model(exact, base)
    assert norm(encoded.decoded["fusion"].params - exact["fusion"].params) < 0.02 * norm(change["fusion"].params)
    version = make_version(encoded.decoded, 42)
    data = chain.seal_model(encoded, version.id)
    assert chain_module.peek_model(data).base == base.id
    assert same_tensors(chain.decode_model(data, base.tensors).tensors, encoded.decoded)
    with pytest.raises(CodecError, match="is a delta"):
        chain.decode_model(data)
    with pytest.raises(WireFormatError, match="wrong digest"):
        chain.decode_model(data, exact)


def test_encode_model_refuses_to_give_a_name_to_other_tensors() -> None:
    version = make_version(random_tensors(LAYOUT, 1, 1.0))
    data = Chain("fp32|zstd", LAYOUT).encode_model(version)
    assert same_tensors(Chain("fp32|zstd", LAYOUT).decode_model(data).tensors, version.tensors)
    with pytest.raises(CodecError, match="does not reproduce"):
        Chain("fp16", LAYOUT).encode_model(version)
    with pytest.raises(CodecError, match="needs a base"):
        Chain("delta|fp32", LAYOUT).encode_model(version)
    with pytest.raises(CodecError, match="takes no base"):
        Chain("fp32", LAYOUT).encode_model(version, version)
    with pytest.raises(ShapeMismatch, match="has modules"):
        Chain("fp32", LAYOUT).roundtrip_model({"fusion": version.tensors["fusion"]})


def test_a_wrong_digest_of_a_version_is_noticed() -> None:
    chain = Chain("fp32", LAYOUT)
    version = make_version(random_tensors(LAYOUT))
    data = bytearray(chain.encode_model(version))
    data[-2] ^= 1
    with pytest.raises(WireFormatError, match="wrong digest"):
        chain.decode_model(bytes(data))
    renamed = ModelVersion(dataclasses.replace(version.id, digest="00" * 16), version.tensors)
    with pytest.raises(WireFormatError, match="wrong digest"):
        chain.decode_model(chain.seal_model(chain.roundtrip_model(version.tensors), renamed.id))


@pytest.mark.parametrize(
    "text", ["", "int8|delta", "zstd", "delta", "fp32|int8", "delta|zstd|int8", "delta|delta|fp32"]
)
def test_steps_that_make_no_chain_are_refused(text: str) -> None:
    with pytest.raises((ConfigError, PluginError)):
        Chain(text, LAYOUT)


def test_an_unknown_step_is_named_with_those_that_exist() -> None:
    with pytest.raises(PluginError, match=r"int7.*int8"):
        Chain("delta|int7", LAYOUT)


def test_spaces_and_repeated_compression_are_fine() -> None:
    assert Chain("delta | int8 | zstd", LAYOUT).text == "delta|int8|zstd"
    twice = Chain("delta|int8|zstd|zstd", LAYOUT)
    encoded = twice.encode_update(make_update())
    assert np.array_equal(twice.decode_update(encoded.data).tensors["fusion"].params, encoded.decoded["fusion"])


def test_limits_are_those_of_the_receiver() -> None:
    chain = Chain("fp32", LAYOUT)
    data = chain.encode_update(make_update()).data
    with pytest.raises(WireFormatError, match="expected 8 to 1000"):
        chain.decode_update(data, Limits(object_bytes=1000))
    with pytest.raises(WireFormatError, match="at most 39"):
        chain.decode_update(data, Limits(array_bytes=39))
    assert chain.decode_update(data, Limits(array_bytes=40)).payload


def test_an_empty_update_is_possible() -> None:
    chain = Chain("delta|int8|zstd", LAYOUT)
    found = chain.decode_update(chain.encode_update(make_update({}, payload={})).data)
    assert dict(found.tensors) == {}
    assert dict(found.payload) == {}
