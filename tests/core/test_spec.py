from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from edge_sdk.core.spec import FederationSpec, ModalitySpec


def spec(**more: Any) -> FederationSpec:
    plain: dict[str, Any] = {
        "name": "gait",
        "modalities": [
            {"name": "acc", "shape": [3, 128], "rate_hz": 50.0},
            {"name": "gyro", "shape": [3, 128], "rate_hz": 50.0},
        ],
        "classes": ["walk", "sit"],
    }
    return FederationSpec.model_validate({**plain, **more})


def test_names_and_lookup() -> None:
    assert spec().modality_names == ("acc", "gyro")
    assert spec().modality("gyro").shape == (3, 128)
    with pytest.raises(KeyError):
        spec().modality("mic")


def test_canonical_form_survives_a_round_trip_and_says_everything() -> None:
    one = spec()
    again = FederationSpec.model_validate(json.loads(one.canonical()))
    assert again == one
    assert again.digest == one.digest
    assert len(one.digest) == 32
    assert json.loads(one.canonical())["window"]["hop_s"] == 1.28  # defaults are spelt out


def test_digest_changes_with_anything_and_not_with_the_order_of_keys() -> None:
    one = spec()
    digests = {
        one.digest,
        spec(name="other").digest,
        spec(classes=["sit", "walk"]).digest,
        spec(window={"hop_s": 1.0}).digest,
        spec(method={"name": "fedasync"}).digest,
        spec(modalities=[{"name": "gyro", "shape": [3, 128]}, {"name": "acc", "shape": [3, 128]}]).digest,
    }
    assert len(digests) == 6
    shuffled = dict(reversed(list(json.loads(one.canonical()).items())))
    assert FederationSpec.model_validate(shuffled).digest == one.digest


def test_shape_digest_only_knows_what_fixes_tensors() -> None:
    one = spec()
    assert spec(method={"name": "fedasync"}, training={"lr": 0.5}).shape_digest == one.shape_digest
    assert spec(classes=["walk", "sit", "run"]).shape_digest != one.shape_digest
    assert spec(model={"feature_dim": 32}).shape_digest != one.shape_digest


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": ["a", "a"]}, "different names"),
        ({"classes": ["a"]}, "at least 2"),
        ({"modalities": []}, "at least 1"),
        ({"modalities": [{"name": "a", "shape": [1]}, {"name": "a", "shape": [2]}]}, "different names"),
        ({"modalities": [{"name": "a", "shape": [0, 3]}]}, "at least 1"),
        ({"modalities": [{"name": "a", "shape": [1, 2, 3, 4]}]}, "at most 3"),
        ({"modalities": [{"name": "a/b", "shape": [1]}]}, "pattern"),
        ({"name": "no spaces please"}, "pattern"),
        ({"name": "x" * 65}, "pattern"),
        ({"name": "line\n"}, "pattern"),
        ({"model": {"fusion": "magic"}}, "pattern"),
        ({"model": {"fusion": "linear\n"}}, "pattern"),
        ({"surprise": 1}, "Extra inputs"),
        ({"window": {"hop_s": 0}}, "greater than 0"),
        ({"window": {"hop_s": float("nan")}}, "finite"),
        ({"window": {"length_s": float("inf")}}, "finite"),
        ({"training": {"momentum": 1.0}}, "less than 1"),
        ({"training": {"lr": float("inf")}}, "finite"),
    ],
)
def test_what_makes_no_federation(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(**more)


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().name = "x"  # type: ignore[misc]
    assert ModalitySpec(name="a", shape=(3,)) == ModalitySpec(name="a", shape=(3,))


def test_a_copy_has_digests_of_its_own() -> None:
    one = spec()
    digests = (one.digest, one.shape_digest)
    other = one.model_copy(update={"name": "other", "classes": ("a", "b", "c")})
    assert one.model_copy() == one
    assert hash(one.model_copy()) == hash(one)
    assert (one.digest, one.shape_digest) == digests
    assert other.digest != one.digest
    assert other.shape_digest != one.shape_digest
    assert other.digest == FederationSpec.model_validate_json(other.canonical()).digest
