"""Features in the spec: shapes are checked when a configuration is read, and the error says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import read_config
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.feature import Frames, Inertial, LogSpectrogram, Text
from edge_sdk.core.spec import FederationSpec, ModalitySpec

GOOD = """
[federation]
name = "home"
classes = ["a", "b"]
window = {length_s = 3.0, hop_s = 1.0}

[[federation.modalities]]
name = "mic"
shape = [1, 257, 300]
feature = {name = "log_spectrogram"}

[[federation.modalities]]
name = "camera"
shape = [3, 672, 224]
feature = {name = "frames"}

[[federation.modalities]]
name = "acc"
shape = [6, 150]
rate_hz = 50
feature = {name = "inertial", gravity = true}

[[federation.modalities]]
name = "note"
shape = [2, 256]
feature = {name = "text", tokenizer = "bert-base-uncased"}
"""


def read(folder: Path, text: str) -> FederationSpec:
    (folder / "c.toml").write_text(text)
    spec = read_config(folder / "c.toml").federation
    assert spec is not None
    return spec


def test_all_features_with_their_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, GOOD)
    assert [m.feature for m in spec.modalities] == [
        LogSpectrogram(), Frames(), Inertial(gravity=True), Text(tokenizer="bert-base-uncased")
    ]  # fmt: skip
    assert FederationSpec.model_validate_json(spec.canonical()) == spec
    without = ModalitySpec(name="acc", shape=(3, 8))
    assert without.feature is None


WRONG = [
    ("[1, 257, 300]", "[1, 257, 299]", 0, r": log_spectrogram makes \(1, 257, 300\), but the shape is \(1, 257, 299\)"),
    ('"log_spectrogram"}', '"log_spectrogram", frames = 303}', 0, r".*: 3 s have 302 frames, not 303"),
    ('"log_spectrogram"}', '"log_spectrogram", hops = 3}', 0, r"\.log_spectrogram\.hops: unknown key"),
    ('"log_spectrogram"}', '"log_spectrogram", n_fft = 511}', 0, r"\.log_spectrogram\.n_fft: .*multiple of 2.*511"),
    ('"log_spectrogram"}', '"mel"}', 0, r": .*'mel'.*'log_spectrogram'"),
    ("[1, 257, 300]", "[1, 257, 300]\nrate_hz = 8000", 0, r": .*takes 16000 Hz, .*rate_hz is 8000"),
    ("length_s = 3.0", "length_s = 4.0", 0, r": mic: .*first 3 s, but a window has 4 s"),
    ("[3, 672, 224]", "[3, 224, 224]", 1, r": frames makes \(channels, 672, 224\), but the shape is \(3, 224, 224\)"),
    ("[6, 150]", "[6, 149]", 2, r": acc: inertial makes 150 samples of 3 s at 50 Hz"),
    ("[6, 150]", "[4, 150]", 2, r": inertial turns vectors of 3 channels"),
    ("rate_hz = 50", "", 2, r": inertial needs .* a rate_hz above 0"),
    ("[2, 256]", "[256]", 3, r": text makes \(2, 256\), but the shape is \(256,\)"),
    (', tokenizer = "bert-base-uncased"', "", 3, r"\.text\.tokenizer: required"),
]


@pytest.mark.parametrize(("old", "new", "number", "message"), WRONG, ids=[new or old for old, new, *_ in WRONG])
def test_what_does_not_fit_is_named_by_file_section_and_key(
    tmp_path: Path, old: str, new: str, number: int, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=rf"modalities\.{number}\.feature{message}") as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path / 'c.toml'}:federation")


def test_the_example_is_a_federation(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / "federation_scenes.toml"
    (tmp_path / "c.toml").write_text(f"[federation]\npath = {str(path)!r}")
    spec = read_config(tmp_path / "c.toml").federation
    assert spec is not None
    assert [m.feature.name for m in spec.modalities if m.feature] == ["frames", "log_spectrogram", "inertial", "text"]


def test_other_sizes() -> None:
    feature = LogSpectrogram(rate_hz=8000, seconds=1.0, n_fft=256, hop=80, frames=97, pad="none")
    assert ModalitySpec(name="mic", shape=(1, 129, 97), rate_hz=8000, feature=feature).feature == feature
    with pytest.raises(ValueError, match="97 frames, not 98"):
        LogSpectrogram(rate_hz=8000, seconds=1.0, n_fft=256, hop=80, frames=98, pad="none")
    with pytest.raises(ValueError, match="fewer than n_fft"):
        LogSpectrogram(seconds=0.01)
    assert ModalitySpec(name="c", shape=(1, 64, 64), feature=Frames(count=1, size=64)).feature is not None


def test_another_feature_is_another_federation() -> None:
    def digest(feature: Frames | None) -> str:
        modality = ModalitySpec(name="c", shape=(1, 6, 2), feature=feature)
        return FederationSpec(name="t", modalities=(modality,), classes=("a", "b")).shape_digest

    assert digest(None) != digest(Frames(count=3, size=2))
