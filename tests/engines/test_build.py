import hashlib

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from engines.build import build
from engines.cache import EngineCache, model_sha256
from engines.errors import EngineError
from engines.formats import pack
from engines.graph import read_graph
from engines.numerics import CHUNK, OrtRunner
from engines.onnx_model import with_batch
from engines.preprocess import quantise
from engines.spec import EngineSpec, Ranges

from .models import AMAX, images, int8_by_hand, make, small, value


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    return EngineCache(tmp_path / "engines", said.append)


def spec(**changes):
    values = {"network": "small", "device": "gpu", "batch": 4, "amax_by_tensor": AMAX, "io_formats": {"x": "CHW4"}}
    return EngineSpec(**{**values, **changes})


def test_the_manifest_says_what_is_in_the_engine(cache):
    engine = build(small(), spec(device="dla", device_by_layer={"pool": "gpu", "fc": "dla"}), cache, "seeded")
    manifest = engine.manifest
    (x,), (y,) = manifest.inputs, manifest.outputs
    assert (x.shape, x.dtype, x.format, x.sample_bytes) == ((3, 8, 8), "int8", "CHW4", 256)
    assert x.scale == pytest.approx(3 / 127)
    assert (y.shape, y.dtype, y.format, y.scale, y.sample_bytes) == ((5,), "float32", "LINEAR", None, 20)
    assert manifest.workload == read_graph(small()).workload
    assert manifest.gpu_layers == ("pool",)
    assert manifest.engine_sha256 == hashlib.sha256(engine.path.read_bytes()).hexdigest()
    assert manifest.weights == "seeded"


@pytest.mark.parametrize("layout", ["LINEAR", "CHW4", "DLA_HWC4"])
def test_an_int8_engine_computes_what_its_network_does_for_any_batch(cache, layout):
    x = quantise(images(CHUNK + 3), AMAX["x"])
    engine = build(small(), spec(io_formats={"x": layout}), cache, "seeded")
    (computed,) = OrtRunner(engine, threads=1).run([pack(x, layout)])
    error = np.abs(computed - int8_by_hand(x * (AMAX["x"] / 127), AMAX))
    assert np.mean(error < 1e-4) > 0.8
    assert error.max() < 0.05  # one INT8 step where float32 and float64 round a tie apart


def test_an_fp32_engine_is_the_plain_network(cache):
    x = images()
    engine = build(small(), spec(precision="fp32", amax_by_tensor={}, io_formats={}), cache, "seeded")
    assert engine.manifest.inputs[0].dtype == "float32"
    (computed,) = OrtRunner(engine, threads=1).run([pack(x, "LINEAR")])
    (expected,) = ReferenceEvaluator(with_batch(small(), 3)).run(None, {"x": x})
    assert np.allclose(computed, expected, atol=1e-4)


def test_int8_arithmetic_does_not_saturate_between_the_sums(cache):
    """Products of 127 x 127 in pairs pass 16 bits: where integer kernels of older x86 CPUs go wrong."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    weights = {"w": np.ones((1, 4, 1, 1), np.float32)}
    model = make(nodes, [value("x", 1, 4, 1, 1)], [value("z", 1, 1, 1, 1)], weights)
    engine = build(model, spec(amax_by_tensor={"x": 127.0, "z": 508.0}, io_formats={}), cache, "ones")
    (z,) = OrtRunner(engine, threads=1).run([pack(np.full((1, 4, 1, 1), 127, np.int8), "LINEAR")])
    assert z.item() == pytest.approx(508.0, rel=1e-6)


def test_a_network_that_fixes_its_batch_runs_sample_by_sample(cache):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("Relu", ["f"], ["y"])]
    model = make(nodes, [value("x", 1, 2, 3)], [value("y", 1, 6)], {"s": np.array([1, 6])})
    engine = build(model, spec(precision="fp32", amax_by_tensor={}, io_formats={}), cache, "none")
    x = np.arange(-12, 12, dtype=np.float32).reshape(4, 2, 3)
    (y,) = OrtRunner(engine, threads=1).run([pack(x, "LINEAR")])
    assert np.array_equal(y, np.maximum(x, 0).reshape(4, 6))


def test_a_built_engine_is_found_again_whatever_its_doc_strings(cache, said):
    first = build(small(), spec(), cache, "seeded")
    stamp = first.path.stat().st_mtime_ns
    documented = small()
    documented.doc_string = documented.graph.doc_string = documented.graph.node[0].doc_string = "made on a Tuesday"
    again = build(documented, spec(), cache, "renamed")
    assert (again.path, again.path.stat().st_mtime_ns, said) == (first.path, stamp, [])
    assert again.manifest.weights == "renamed"
    assert build(small(), spec(batch=8), cache, "seeded").path != first.path


def test_one_changed_weight_is_another_model():
    changed = small()
    tensor = changed.graph.initializer[0]
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    assert model_sha256(changed) != model_sha256(small())


def damage_bytes(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def damage_manifest(path):
    path.with_suffix(".json").write_text("{}")


def make_foreign(path):
    manifest = path.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"batch": 4', '"batch": 5'))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage_bytes, "bytes are damaged"),
        (damage_manifest, "manifest cannot be read"),
        (make_foreign, "belongs to another engine"),
        (lambda path: path.unlink(), "file is missing"),
    ],
)
def test_an_entry_that_cannot_be_used_is_rebuilt_saying_so(cache, said, harm, reason):
    engine = build(small(), spec(), cache, "seeded")
    good = engine.path.read_bytes()
    harm(engine.path)
    rebuilt = build(small(), spec(), cache, "seeded")
    assert len(said) == 1
    assert reason in said[0]
    assert rebuilt.path.read_bytes() == good
    assert build(small(), spec(), cache, "seeded") == rebuilt
    assert len(said) == 1


def test_nothing_but_whole_entries_lies_in_the_cache(cache, tmp_path):
    build(small(), spec(), cache, "seeded")
    assert sorted(path.suffix for path in (tmp_path / "engines").iterdir()) == [".engine", ".json"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EngineError, match="cannot be stored: .*choose another cache") as caught:
        build(small(), spec(), EngineCache(blocked / "engines", print), "seeded")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("amax", [{}, {"x": 1.0}, {"r1": 1.0, "a": 2.0}])
def test_int8_without_ranges_is_refused(cache, amax):
    with pytest.raises(EngineError, match="int8 needs dynamic ranges, none for its (input 'x'|activations)"):
        build(small(), spec(amax_by_tensor=amax), cache, "seeded")


def test_unknown_precision_and_absent_weights_are_refused(cache):
    with pytest.raises(EngineError, match="precision is 'int4', expected one of int8"):
        build(small(), spec(precision="int4"), cache, "seeded")
    bare = small()
    bare.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(EngineError, match="declared without weights"):
        build(bare, spec(), cache, "seeded")


def test_a_runner_refuses_inputs_and_files_that_do_not_fit(cache):
    engine = build(small(), spec(), cache, "seeded")
    runner = OrtRunner(engine, threads=1)
    with pytest.raises(EngineError, match=r"packed samples are uint8\[2, 7\], expected uint8\[N, 256\]"):
        runner.run([np.zeros((2, 7), np.uint8)])
    with pytest.raises(EngineError, match="expected 1 of"):
        runner.run([])
    engine.path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match="does not load in ONNX Runtime"):
        OrtRunner(engine, threads=1)


def test_a_spec_takes_the_mappings_of_ranges_and_survives_json():
    ranges = Ranges({"x": np.float32(0.5)}, "minmax", 8)
    taken = spec(amax_by_tensor=ranges.amax_by_tensor)
    assert EngineSpec.from_json(taken.as_json()) == taken
    assert EngineSpec.from_json(taken.as_json()).digest() == taken.digest()
