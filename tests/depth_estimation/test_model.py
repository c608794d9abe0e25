import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pipeline.depth_estimation.model import DepthModel, DepthModelSettings
from pipeline.errors import InputError
from tests.networks import WEIGHTS, one_node, save_network, weighted_sum
from tests.samples import smooth_picture

FLOAT = TensorProto.FLOAT


def test_output_is_the_networks_own(tmp_path: Path) -> None:
    settings = DepthModelSettings(mean=(0.5, 0.25, 0.125), std=(0.5, 2.0, 0.25))
    depth_model = DepthModel(weighted_sum(tmp_path / "net.onnx"), settings, 4)
    pictures = [smooth_picture(seed) for seed in range(3)]
    images = np.empty((3, 3, 48, 48), np.float32)
    for picture, image in zip(pictures, images, strict=True):
        depth_model.prepare(picture, image)
    expected = (np.stack(pictures) / 255.0 - settings.mean) / settings.std
    assert np.allclose(images, expected.transpose(0, 3, 1, 2), atol=1e-5)
    output = depth_model(images)
    assert output.shape == (3, 48, 48)
    assert output.dtype == np.float32
    assert np.allclose(output, expected @ WEIGHTS.astype(np.float64), atol=1e-5)


def test_pictures_are_resized_to_the_networks_input(tmp_path: Path) -> None:
    depth_model = DepthModel(weighted_sum(tmp_path / "net.onnx", (24, 32)), DepthModelSettings(), 1)
    picture = smooth_picture(0)
    image = np.empty((3, 24, 32), np.float32)
    depth_model.prepare(picture, image)
    box = np.asarray(Image.fromarray(picture).resize((32, 24), Image.Resampling.BOX)) / 255
    assert np.abs(image.transpose(1, 2, 0) - box).max() < 0.03


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_kept(batch: int, tmp_path: Path) -> None:
    depth_model = DepthModel(weighted_sum(tmp_path / "net.onnx", batch=batch), DepthModelSettings(), 8)
    assert depth_model.batch_size == batch
    assert depth_model(np.ones((1, 3, 48, 48), np.float32)).shape == (1, 48, 48)


def test_half_precision_and_a_missing_channel_are_taken(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Cast", ["mean"], ["depth"], to=TensorProto.FLOAT16),
    ]
    image, depth = (FLOAT, ("n", 3, "h", "w")), (TensorProto.FLOAT16, ("n", "h", "w"))
    model = save_network(tmp_path / "net.onnx", nodes, {"image": image}, {"depth": depth})
    depth_model = DepthModel(model, DepthModelSettings(size=(8, 16)), 2)
    output = depth_model(np.full((2, 3, 8, 16), 0.25, np.float32))
    assert output.dtype == np.float32
    assert np.array_equal(output, np.full((2, 8, 16), 0.25))


def test_the_size_is_stated_once(tmp_path: Path) -> None:
    fixed, free = weighted_sum(tmp_path / "fixed.onnx"), weighted_sum(tmp_path / "free.onnx", ("h", "w"))
    half_free = weighted_sum(tmp_path / "half.onnx", (48, "w"))
    assert DepthModel(fixed, DepthModelSettings(), 1).size == (48, 48)
    assert DepthModel(fixed, DepthModelSettings(size=(48, 48)), 1).size == (48, 48)
    assert DepthModel(free, DepthModelSettings(size=(24, 36)), 1).size == (24, 36)
    assert DepthModel(half_free, DepthModelSettings(size=(48, 36)), 1).size == (48, 36)
    with pytest.raises(InputError, match=r"takes pictures of any size: give the one .* --size HEIGHT WIDTH$"):
        DepthModel(free, DepthModelSettings(), 1)
    with pytest.raises(InputError, match=r"takes pictures of \[48, 48\] \(height, width\), not of size \[48, 36\]$"):
        DepthModel(fixed, DepthModelSettings(size=(48, 36)), 1)


def two_inputs(path: Path) -> Path:
    image = (FLOAT, ("batch", 3, 48, 48))
    node = helper.make_node("Add", ["left", "right"], ["depth"])
    return save_network(path, [node], {"left": image, "right": image}, {"depth": image})


def two_outputs(path: Path) -> Path:
    image = (FLOAT, ("batch", 3, 48, 48))
    nodes = [helper.make_node("Relu", ["image"], ["a"]), helper.make_node("Neg", ["image"], ["b"])]
    return save_network(path, nodes, {"image": image}, {"a": image, "b": image})


def channels_last(path: Path) -> Path:
    shape = (FLOAT, ("batch", 48, 48, 3))
    return save_network(path, [helper.make_node("Relu", ["image"], ["depth"])], {"image": shape}, {"depth": shape})


def double_input(path: Path) -> Path:
    shape = (TensorProto.DOUBLE, ("batch", 3, 48, 48))
    return save_network(path, [helper.make_node("Relu", ["image"], ["depth"])], {"image": shape}, {"depth": shape})


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (two_inputs, r"input left tensor\(float\) \[batch, 3, 48, 48\], right tensor\(float\) .*; output depth"),
        (two_outputs, r"output a tensor\(float\) \[batch, 3, 48, 48\], b tensor\(float\)"),
        (channels_last, r"input image tensor\(float\) \[batch, 48, 48, 3\]"),
        (double_input, r"input image tensor\(double\) \[batch, 3, 48, 48\]"),
        (lambda path: one_node(path, "Cast", TensorProto.INT32, ("batch", 3, 48, 48), to=6), r"depth tensor\(int32\)"),
        (lambda path: one_node(path, "Relu", FLOAT, ("batch", 3, 48, 48)), r"gives \[2, 3, 48, 48\] for a batch of"),
        (lambda path: one_node(path, "Flatten", FLOAT, ("batch", 6912)), r"gives \[2, 6912\] for a batch of \[2, 3,"),
        (lambda path: one_node(path, "ReduceMax", FLOAT, (1, 1, 48, 48), axes=[0, 1]), r"gives \[1, 1, 48, 48\] for a"),
    ],
)
def test_another_kind_of_network_is_one_line(make: Any, found: str, tmp_path: Path) -> None:
    expected = r"expected one input float32 \[N, 3, H, W\] \(RGB\) and one output float \[N, H, W\] or \[N, 1, H, W\]"
    with pytest.raises(InputError, match=f"{found}.*{expected}") as raised:
        DepthModel(make(tmp_path / "net.onnx"), DepthModelSettings(), 2)
    assert "\n" not in str(raised.value)


def test_a_batch_that_is_fixed_inside_is_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1]),
        helper.make_node("Reshape", ["mean", "shape"], ["depth"]),
    ]
    image, depth = (FLOAT, ("batch", 3, 48, 48)), (FLOAT, ("batch", 1, 48, 48))
    constants = {"shape": np.array([1, 1, 48, 48])}
    model = save_network(tmp_path / "net.onnx", nodes, {"image": image}, {"depth": depth}, constants)
    assert DepthModel(model, DepthModelSettings(), 1).batch_size == 1
    with pytest.raises(InputError, match=r"fails on a batch of \[2, 3, 48, 48\] \(.*\): try a smaller --batch-size"):
        DepthModel(model, DepthModelSettings(), 2)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff a picture", b'{"a": 1}'])
def test_a_file_that_is_no_network(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx cannot be opened as an ONNX network: ") as raised:
        DepthModel(tmp_path / "net.onnx", DepthModelSettings(), 1)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"no such file: .*other\.onnx: give a network in ONNX format"):
        DepthModel(tmp_path / "other.onnx", DepthModelSettings(), 1)


def test_a_missing_onnxruntime_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"^onnxruntime is missing: pip install onnxruntime \(or onnxruntime-gpu"):
        DepthModel(weighted_sum(tmp_path / "net.onnx"), DepthModelSettings(), 1)


def test_threads_of_the_network_do_not_spin(tmp_path: Path) -> None:
    options = DepthModel(weighted_sum(tmp_path / "net.onnx"), DepthModelSettings(), 1)._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_the_hash_covers_weights_in_other_files(tmp_path: Path) -> None:
    path = weighted_sum(tmp_path / "net.onnx")
    assert DepthModel(path, DepthModelSettings(), 1).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    before = DepthModel(path, DepthModelSettings(), 1).sha256
    weights = np.frombuffer((tmp_path / "net.onnx.data").read_bytes(), np.float32)
    assert np.array_equal(weights[:3], WEIGHTS)
    (tmp_path / "net.onnx.data").write_bytes((2 * weights).tobytes())
    assert DepthModel(path, DepthModelSettings(), 1).sha256 != before
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(InputError, match="cannot be opened as an ONNX network"):
        DepthModel(path, DepthModelSettings(), 1)


def test_settings_stand_beside_the_model_and_flags_win(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    assert DepthModelSettings.load(model, {}) == DepthModelSettings()
    beside = {"size": [24, 32], "mean": [0.485, 0.456, 0.406], "near": "low", "range": [0, 80]}
    (tmp_path / "net.json").write_text(json.dumps(beside))
    mean = (0.485, 0.456, 0.406)
    assert DepthModelSettings.load(model, {}) == DepthModelSettings((24, 32), mean, (1, 1, 1), "low", (0, 80))
    flags = {"near": "high", "range": None, "std": (2.0, 2.0, 2.0)}
    assert DepthModelSettings.load(model, flags) == DepthModelSettings((24, 32), mean, (2, 2, 2), "high", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"net\.json is no JSON \("),
        ("[1, 2]", r"net\.json holds \[1, 2\]: expected an object with some of size, mean, std, near, range$"),
        ('{"nera": "low", "Size": 3}', r"net\.json has unknown keys Size, nera: expected an object with some of size"),
        ('{"size": 384}', r"size 384: expected height and width of the network's input, whole pixels \(.*net\.json\)"),
        ('{"size": [384.0, 384]}', r"size \(384\.0, 384\): expected"),
        ('{"size": [0, 384]}', r"size \(0, 384\): expected"),
        ('{"mean": [0.5, 0.5]}', r"mean \(0\.5, 0\.5\), std .*: expected three numbers each"),
        ('{"mean": [0.5, 0.5, NaN]}', r"mean .*: expected three numbers each"),
        ('{"std": [1, 1, 0]}', r"std \(1, 1, 0\): expected three numbers each \(RGB\), std above 0"),
        ('{"std": "1 1 1"}', r"std 1 1 1: expected three numbers each"),
        ('{"near": "bright"}', r"near 'bright': expected high \(large outputs are near\) or low"),
        ('{"range": [5, 5]}', r"range \(5, 5\): expected two outputs of the network, the lower first"),
        ('{"range": [true, 5]}', r"range \(True, 5\): expected two outputs"),
    ],
)
def test_wrong_settings_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(InputError, match=message):
        DepthModelSettings.load(tmp_path / "net.onnx", {})
