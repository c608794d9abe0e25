"""Tiny ONNX networks whose output is a known function of the pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.array([0.5, 0.25, -0.125], np.float32)  # of red, green and blue
Shape = Sequence[str | int]


def save_network(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape]],
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Write `nodes` as an ONNX file; inputs and outputs are (element type, shape) by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    # Old versions of both, which every onnxruntime since 2023 can read.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def weighted_sum(path: Path, size: Shape = (48, 48), batch: str | int = "batch", *, shrink: int = 1) -> Path:
    """The sum of the channels times WEIGHTS, float32 [N, 1, H / shrink, W / shrink], averaged over shrink x shrink."""
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["sum"]),
        helper.make_node("AveragePool", ["sum"], ["depth"], kernel_shape=[shrink] * 2, strides=[shrink] * 2),
    ]
    weights = WEIGHTS.reshape(1, 3, 1, 1)
    image = (TensorProto.FLOAT, (batch, 3, *size))
    depth = (TensorProto.FLOAT, (batch, 1, *("any" if isinstance(edge, str) else edge // shrink for edge in size)))
    return save_network(path, nodes, {"image": image}, {"depth": depth}, {"weights": weights})


def one_node(path: Path, operator: str, kind: int = TensorProto.FLOAT, shape: Shape = (), **attributes: object) -> Path:
    """One operator on [batch, 3, 48, 48]; its output is declared as `kind` and `shape`."""
    node = helper.make_node(operator, ["image"], ["depth"], **attributes)  # type: ignore[arg-type]
    image = (TensorProto.FLOAT, ("batch", 3, 48, 48))
    return save_network(path, [node], {"image": image}, {"depth": (kind, shape)})


def slow_network(path: Path, layers: int = 20) -> Path:
    """3 billion multiplications a picture, tens of milliseconds: time enough to be killed."""
    weights = np.random.default_rng(0).normal(0, 1 / 24, (64, 64, 3, 3)).astype(np.float32)
    first, last = np.ones((64, 3, 1, 1), np.float32), np.ones((1, 64, 1, 1), np.float32)
    nodes = [helper.make_node("Conv", ["image", "first"], ["0"])]
    for layer in range(layers):
        nodes.append(helper.make_node("Conv", [f"{layer}", "weights"], [f"{layer + 1}"], pads=[1] * 4))
    nodes.append(helper.make_node("Conv", [f"{layers}", "last"], ["depth"]))
    return save_network(
        path,
        nodes,
        {"image": (TensorProto.FLOAT, ("batch", 3, 64, 64))},
        {"depth": (TensorProto.FLOAT, ("batch", 1, 64, 64))},
        {"first": first, "weights": weights, "last": last},
    )
