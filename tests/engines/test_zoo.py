import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from engines import zoo
from engines.errors import EngineError
from engines.graph import read_graph

from .models import small


@pytest.fixture(scope="module")
def resnet():
    return zoo.model("resnet50")


def photos(count):
    """Smooth random colours with a little noise, minus the mean: an image's statistics, no image."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (count, 3, 7, 7)).repeat(32, axis=2).repeat(32, axis=3)
    noisy = np.clip(coarse + rng.normal(0, 10, coarse.shape), 0, 255)
    return (noisy - np.array([123.68, 116.78, 103.94]).reshape(1, 3, 1, 1)).astype(np.float32)


def test_seeded_weights_keep_all_sixteen_blocks_alive_and_tell_images_apart(resnet):
    probe = onnx.ModelProto()
    probe.CopyFrom(resnet)
    sums = [f"layer{stage}.{block}.relu3_output" for stage, n in enumerate((3, 4, 6, 3), 1) for block in range(n)]
    probe.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in sums)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"input": photo[None]}) for photo in photos(3)]
    for blocks in (run[1:] for run in runs):
        assert len(blocks) == 16
        assert all(1 < block.std() < 100 for block in blocks)
        assert all(0.1 < (block > 0).mean() < 1 for block in blocks)
    logits = np.concatenate([run[0] for run in runs])
    assert np.ptp(logits, axis=0).std() > 0.1 * logits.std()
    assert np.corrcoef(logits)[np.triu_indices(3, 1)].max() < 0.98


def test_seeded_weights_are_the_same_each_time(resnet):
    again = zoo.model("resnet50")
    assert [t.raw_data for t in again.graph.initializer] == [t.raw_data for t in resnet.graph.initializer]


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_a_graph_has_no_weights_and_is_valid_onnx(name):
    bare = zoo.model(name, with_weights=False)
    assert bare.ByteSize() < 250_000
    tensors = list(bare.graph.initializer)
    del bare.graph.initializer[:]
    for tensor in tensors:  # the checker wants data: what has none becomes an input
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            bare.graph.initializer.append(tensor)
    onnx.checker.check_model(bare, full_check=True)


def test_facts_agree_with_the_graph():
    for name, entry in zoo.NETWORKS.items():
        graph = zoo.graph(name)
        assert len(graph.inputs) == entry.inputs
        assert {graph.tensors[x].shape for x in graph.inputs} == {(1, *entry.input_shape)}
        counted = zoo.counts(graph)
        assert counted.macs == pytest.approx(entry.published_gmacs * 1e9, rel=0.01)
        assert counted.params == pytest.approx(entry.published_params, rel=0.01)


def test_an_unknown_name_gets_the_known_ones():
    with pytest.raises(EngineError, match="'resnet5' is not in the zoo, which has resnet50, .*did you mean 'resnet50'"):
        zoo.network("resnet5")


def test_a_saved_network_is_the_one_in_memory(tmp_path):
    path = zoo.save("ssd-mobilenet", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ssd-mobilenet.data", "ssd-mobilenet.onnx"]
    assert path.stat().st_size < 150_000
    onnx.checker.check_model(str(path), full_check=True)
    saved, made = onnx.load(path), zoo.model("ssd-mobilenet")
    assert saved.graph.node == made.graph.node
    for ours, theirs in zip(saved.graph.initializer, made.graph.initializer, strict=True):
        assert ours.name == theirs.name
        assert np.array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
    image = np.random.default_rng(0).normal(0, 1, (1, 3, 300, 300)).astype(np.float32)
    runs = [onnxruntime.InferenceSession(m).run(None, {"input": image}) for m in (path, made.SerializeToString())]
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_saved_network_is_a_checkpoint_and_its_graph_needs_no_data(tmp_path):
    path = zoo.save("mobilenet-v2", tmp_path)
    loaded = zoo.model("mobilenet-v2", path)
    weight = next(tensor for tensor in loaded.graph.initializer if tensor.name == "classifier.weight")
    assert numpy_helper.to_array(weight).shape == (1000, 1280)
    path.with_suffix(".data").unlink()
    bare = zoo.model("mobilenet-v2", path, with_weights=False)
    assert zoo.counts(read_graph(bare)) == zoo.counts(zoo.graph("mobilenet-v2"))
    with pytest.raises(EngineError, match="mobilenet-v2.onnx cannot be read"):
        zoo.model("mobilenet-v2", path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(EngineError, match="gone/unet3d.onnx cannot be written: No such file or directory"):
        zoo.save("unet3d", tmp_path / "gone")


def test_a_backbone_ends_at_its_feature_maps_and_runs():
    cut = zoo.backbone("ssd-mobilenet")
    onnx.checker.check_model(cut, full_check=True)
    image = np.random.default_rng(0).normal(0, 1, (1, 3, 300, 300)).astype(np.float32)
    maps = onnxruntime.InferenceSession(cut.SerializeToString()).run(None, {"input": image})
    assert [x.shape for x in maps] == [(1, 512, 19, 19), (1, 1024, 10, 10)]


def test_a_checkpoint_is_taken_by_path_with_its_batch_made_static(tmp_path):
    path = tmp_path / "mine.onnx"
    model = zoo.model("resnet50", with_weights=False)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, path)
    loaded = zoo.model("resnet50", path)
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert loaded.graph.node == model.graph.node


def test_a_checkpoint_needs_all_inputs_of_its_network(tmp_path):
    path = tmp_path / "mine.onnx"
    onnx.save(small(), path)
    with pytest.raises(EngineError, match=r"x\[1, 3, 8, 8\], expected 3 inputs \[N,384\] for bert-large"):
        zoo.model("bert-large", path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "mine.onnx"
    onnx.save(small(), path)
    with pytest.raises(EngineError, match=r"mine.onnx has inputs x\[1, 3, 8, 8\], expected one image input"):
        zoo.model("resnet50", path)
