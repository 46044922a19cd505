"""Exported graphs say what torch says, for any version's weights, any batch and any mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_sdk.core import parity, registry
from edge_sdk.core.errors import ConfigError, EngineError, ParityError, ShapeMismatch
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import parity as torch_parity
from export import sidecar
from export.engines.ort import OrtEngine
from export.engines.torch_engine import TorchEngine
from export.to_onnx import export_onnx, export_standalone
from export.trace import random_tensors
from tests.helpers.exports import exported
from tests.helpers.plugins import registered
from tests.helpers.specs import har_spec, tri_spec

NO_NEEDS = Needs()
SHAPES = {"cnn1d": (4, 40), "cnn2d": (3, 14, 18), "mlp": (11,)}  # a window for every encoder that `auto` chooses
ODD = ("3d-acc_", "keys", "input", "weight")  # legal names of modalities


def encoders_spec() -> FederationSpec:
    """One modality for every encoder that `auto` chooses, odd sizes, odd names, constants in every input."""
    modalities = tuple(
        ModalitySpec(
            name=odd,
            shape=SHAPES[encoder],
            encoder=encoder,
            mean=tuple(0.1 * i for i in range(SHAPES[encoder][0])),
            std=tuple(1.0 + 0.2 * i for i in range(SHAPES[encoder][0])),
        )
        for odd, encoder in zip(ODD, SHAPES, strict=False)
    )
    return tri_spec(fusion="linear", modalities=modalities)


CASES = {
    "har_linear": (har_spec(), NO_NEEDS),
    "tri_mlp_heads": (tri_spec(), Needs(heads=True)),
    "har_cosine": (har_spec(), Needs(cosine_head=True)),
    "har_gates": (har_spec(), Needs(gates=True)),
    "tri_feature_means": (tri_spec(), Needs(gates=True)),
    "every_encoder": (encoders_spec(), NO_NEEDS),
}


def assert_parity(graph: Path, spec: FederationSpec, needs: Needs, tensors: ModelTensors) -> None:
    engine = OrtEngine.open(graph, random_tensors(build.layout(spec, needs), 77)).with_tensors(tensors)
    for batch in (1, 5):
        windows = parity.noise(spec, batch, 100 + batch)
        report = torch_parity.check(engine, spec, needs, tensors=tensors, windows=windows, tolerance=1e-5)
        assert report.agreement == 1.0
        assert report.windows == batch


@pytest.mark.parametrize("case", CASES)
def test_swapped_weights_give_the_logits_of_torch(case: str) -> None:
    spec, needs = CASES[case]
    graph = exported(spec, needs)
    info = sidecar.read(graph).info
    assert info.modalities == spec.modality_names
    assert info.layout_digest == params.layout_digest(build.layout(spec, needs))
    for tensors in (build.initial_tensors(spec, needs, 5), random_tensors(build.layout(spec, needs), 6)):
        assert_parity(graph, spec, needs, tensors)


def test_every_encoder_that_auto_chooses_is_among_the_cases() -> None:
    assert set(SHAPES) == set(build.AUTO.values())
    assert set(SHAPES) <= set(registry.names("encoders"))


def test_the_graph_is_small_open_and_readable_by_old_runtimes() -> None:
    spec = har_spec()
    graph = exported(spec)
    proto = onnx.load(str(graph), load_external_data=False)
    open_weights = {i.name for i in proto.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
    expected = {f"{m}:{t.name}" for m, layout in build.layout(spec).items() for t in layout.tensors}
    assert open_weights == expected
    assert proto.ir_version <= 10
    assert [i.name for i in proto.graph.input] == ["acc", "gyro", "mask"]
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert graph.stat().st_size < 20_000
    assert str(Path.home()) not in graph.read_bytes().decode("latin-1")


def test_exports_are_silent_and_equal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph, again = exported(har_spec()), tmp_path / "again.onnx"
    capfd.readouterr()
    export_onnx(har_spec(), NO_NEEDS, again)
    assert capfd.readouterr() == ("", "")
    assert again.read_bytes() == graph.read_bytes()
    assert sidecar.path_of(again).read_bytes() == sidecar.path_of(graph).read_bytes()


@pytest.fixture
def strange_encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    where = "tests.helpers.encoders"
    points = {
        "bn": f"{where}:BatchNormCnn",
        "eigen": f"{where}:Eigenvalues",
        "forgetful": f"{where}:Forgetful",
        "steps": f"{where}:TwoDimensional",
    }
    with registered(tmp_path_factory.mktemp("plugins"), "encoders", **points):
        yield


def strange_spec(encoder: str) -> FederationSpec:
    modalities = tuple(ModalitySpec(name=m, shape=(3, 20), encoder=encoder) for m in ("acc", "gyro"))
    return har_spec(modalities=modalities)


@pytest.mark.usefixtures("strange_encoders")
def test_batchnorm_is_folded_on_the_host_at_every_swap() -> None:
    spec = strange_spec("bn")
    graph = exported(spec)
    kept = [n.op_type for n in onnx.load(str(graph), load_external_data=False).graph.node]
    assert kept.count("BatchNormalization") == 4  # per modality: the one in front, and the one with a second reader
    folds = [
        w for w in sidecar.read(graph).weights if w.transform == "fold_weight" and w.name.startswith("encoder.acc")
    ]
    assert {w.sources[0].tensor for w in folds} == {"first.weight", "second.weight", "out.weight"}
    for seed in (21, 22, 23):
        assert_parity(graph, spec, NO_NEEDS, random_tensors(build.layout(spec), seed))


@pytest.mark.usefixtures("strange_encoders")
def test_running_statistics_alone_change_the_engine() -> None:
    spec = strange_spec("bn")
    graph = exported(spec)
    tensors = random_tensors(build.layout(spec), 3)
    name = "encoder.acc"
    changed = {**tensors, name: replace(tensors[name], stats=tensors[name].stats + np.float32(0.5))}
    x, rows = parity.noise(spec, 4, 0), parity.masks(spec)
    before = OrtEngine(graph, tensors)
    after = before.with_tensors(changed)
    assert not parity.compare(after, before, x, rows=rows, tolerance=1e-3).ok
    assert_parity(graph, spec, NO_NEEDS, changed)


@pytest.mark.usefixtures("strange_encoders")
def test_a_small_weight_is_not_folded_into_a_constant() -> None:
    spec = strange_spec("steps")
    graph = exported(spec)
    assert_parity(graph, spec, NO_NEEDS, random_tensors(build.layout(spec), 9))


@pytest.mark.usefixtures("strange_encoders")
def test_a_constant_made_from_weights_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"encoder_acc\.doubled.*depends on the weights"):
        export_onnx(strange_spec("forgetful"), NO_NEEDS, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("strange_encoders")
def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"federation 'har': operator aten\._linalg_eigh is not supported$"):
        export_onnx(strange_spec("eigen"), NO_NEEDS, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mask", "logits"])
def test_reserved_names_are_refused(name: str, tmp_path: Path) -> None:
    spec = har_spec(modalities=(ModalitySpec(name=name, shape=(3,)), ModalitySpec(name="acc", shape=(3,))))
    with pytest.raises(ConfigError, match=name):
        export_onnx(spec, NO_NEEDS, tmp_path / "model.onnx")


def test_export_proves_the_version_it_is_given(tmp_path: Path) -> None:
    spec = har_spec()
    tensors = build.initial_tensors(spec, NO_NEEDS, 1)
    broken = {**tensors, "fusion": replace(tensors["fusion"], params=tensors["fusion"].params * np.float32("nan"))}
    with pytest.raises(ParityError):
        export_onnx(spec, NO_NEEDS, tmp_path / "model.onnx", broken)
    assert list(tmp_path.iterdir()) == []


def test_standalone_file_needs_nothing_of_ours(tmp_path: Path) -> None:
    spec, needs = CASES["tri_mlp_heads"]
    tensors = build.initial_tensors(spec, needs, 4)
    graph, baked = exported(spec, needs), tmp_path / "baked.onnx"
    export_standalone(spec, needs, tensors, baked, version="17", graph=graph)
    onnx.checker.check_model(str(baked), full_check=True)
    session = onnxruntime.InferenceSession(baked.read_bytes(), providers=["CPUExecutionProvider"])
    x, mask = parity.noise(spec, 3, 0), np.ones((3, 3), np.float32)
    found = session.run(["logits"], {**x, "mask": mask})[0]
    assert np.array_equal(found, OrtEngine(graph, tensors).run(x, mask))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(spec.classes)
    assert metadata["spec_digest"] == spec.digest
    assert metadata["version"] == "17"


def test_standalone_exports_by_itself_and_refuses_another_models_graph(tmp_path: Path) -> None:
    spec, needs = har_spec(), NO_NEEDS
    tensors = build.initial_tensors(spec, needs, 4)
    export_standalone(spec, needs, tensors, tmp_path / "sub" / "baked.onnx")
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["baked.onnx"]
    other, other_needs = CASES["tri_mlp_heads"]
    graph = exported(other, other_needs)
    with pytest.raises(EngineError, match="another model"):
        export_standalone(spec, needs, tensors, tmp_path / "b.onnx", graph=graph)
    with pytest.raises(ShapeMismatch, match="encoder"):
        export_standalone(other, other_needs, tensors, tmp_path / "b.onnx", graph=graph)


def test_sidecar_digest_is_that_of_learn() -> None:
    for spec, needs in CASES.values():
        layout = build.layout(spec, needs)
        assert sidecar.layout_digest(layout) == params.layout_digest(layout)


def test_torch_engine_opens_from_the_sidecar_alone(tmp_path: Path) -> None:
    spec, needs = CASES["har_cosine"]
    description = sidecar.path_of(exported(spec, needs))
    shutil.copy(description, tmp_path)
    engine = TorchEngine.open(tmp_path / description.name.removesuffix(".json"), build.initial_tensors(spec, needs))
    assert engine.info == sidecar.read(exported(spec, needs)).info
