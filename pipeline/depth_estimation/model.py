"""Depth model: a monocular depth network in an ONNX file, and what must be known to feed and to read it."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError, MachineError
from pipeline.files import read_file

NEAR = ("high", "low")
GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
EXPECTED = "expected one input float32 [N, 3, H, W] (RGB) and one output float [N, H, W] or [N, 1, H, W]"
# In an ONNX file, how a tensor says that it lies in another file (protobuf: key "location", value a path, its length).
EXTERNAL_FILE = re.compile(rb"\n\x08location\x12([\x01-\x7f])")


@dataclass(frozen=True)
class DepthModelSettings:
    """What an ONNX file does not say of its network. Raises `InputError` for a value out of range."""

    size: tuple[int, int] | None = None
    """Height and width of the input, pixels; None: as the ONNX file has it."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of red, green and blue in 0..1: subtracted."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of the same: the difference is divided by it."""
    near: str = "high"
    """Which outputs are near: "high" (disparity, inverse depth) or "low" (depth, distance)."""
    range: tuple[float, float] | None = None
    """The outputs between which the gray scale lies, the lower first; None: each picture's own extremes."""

    def __post_init__(self) -> None:
        if self.size is not None and not (_are_numbers(self.size, 2) and all(_is_edge(edge) for edge in self.size)):
            raise InputError(f"size {self.size}: expected height and width of the network's input, whole pixels")
        if not _are_numbers(self.mean, 3) or not _are_numbers(self.std, 3) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean}, std {self.std}: expected three numbers each (RGB), std above 0")
        if self.near not in NEAR:
            raise InputError(f"near {self.near!r}: expected high (large outputs are near) or low (small ones)")
        if self.range is not None and not (_are_numbers(self.range, 2) and self.range[0] < self.range[1]):
            raise InputError(f"range {self.range}: expected two outputs of the network, the lower first")

    @classmethod
    def load(cls, model: Path, flags: Mapping[str, Any]) -> "DepthModelSettings":
        """The settings in the JSON file beside `model` (FILE.json, if there is one); those in `flags` win.

        Raises `InputError` for a file that is no JSON object, unknown keys and values out of range.
        """
        path, content = model.with_suffix(".json"), {}
        if path.exists():
            try:
                content = json.loads(path.read_bytes())
            except ValueError as error:
                raise InputError(f"{path} is no JSON ({error})") from error
        expected = f"expected an object with some of {', '.join(field.name for field in fields(cls))}"
        if not isinstance(content, dict):
            raise InputError(f"{path} holds {json.dumps(content)[:80]}: {expected}")
        if unknown := sorted(content.keys() - {field.name for field in fields(cls)}):
            raise InputError(f"{path} has unknown keys {', '.join(unknown)}: {expected}")
        content = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        try:
            settings = replace(cls(**content), **flags)
            numbers: dict[str, Any] = {name: _floats(getattr(settings, name)) for name in ("mean", "std", "range")}
            return replace(settings, **numbers)  # 1 and 1.0 must give the same record
        except InputError as error:
            raise InputError(f"{error} (flags, and {path})" if content else str(error)) from error


def _floats(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _are_numbers(values: object, count: int) -> bool:
    if not isinstance(values, tuple) or len(values) != count:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _is_edge(pixels: object) -> bool:
    return isinstance(pixels, int) and pixels > 0


class DepthModel:
    """A loaded network, tried on a batch of black pictures: its input and output have the right shapes."""

    def __init__(self, path: Path, settings: DepthModelSettings, batch_size: int, threads: int = 0) -> None:
        """Open the file `path` on the GPU if onnxruntime offers it, else on the CPU, with `threads`; 0: one a core.

        Raises `InputError` if onnxruntime is missing, the file is no ONNX or no network of this kind, if the size of
        its input is nowhere stated, or if it fails.
        """
        self.path = path
        self._session = _open(path, threads)
        self.device = "GPU" if GPU in self._session.get_providers() else "CPU"
        batch, *size = self._input_shape()
        self._fixed_batch = batch is not None
        self.batch_size = batch or batch_size
        """Pictures that it takes at a time: as asked for, unless the file allows one number only."""
        self.size = _agreed_size(path, size, settings.size)
        """Height and width of its input, pixels."""
        self.settings = replace(settings, size=self.size)
        self.sha256 = hash_model(path)
        self(np.zeros((self.batch_size, 3, *self.size), np.float32))

    def _input_shape(self) -> list[int | None]:
        """Batch size, height and width of the input as the file states them; None: any."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = [edge if isinstance(edge, int) else None for edge in inputs[0].shape] if inputs else []
        good_input = (
            len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(shape) == 4 and shape[1] in (3, None)
        )
        floats = ("tensor(float)", "tensor(float16)", "tensor(double)")
        if not (good_input and len(outputs) == 1 and outputs[0].type in floats):
            found = "; ".join(
                f"{kind} " + ", ".join(f"{node.name} {node.type} {_as_text(node.shape)}" for node in nodes)
                for kind, nodes in (("input", inputs), ("output", outputs))
            )
            raise InputError(f"{self.path}: {found}; {EXPECTED}: export it so, in a module around it if need be")
        self._input_name = inputs[0].name
        return [shape[0], *shape[2:]]

    def arguments(self) -> dict[str, Any]:
        """See `model_arguments`."""
        return model_arguments(self.sha256, self.settings)

    def prepare(self, picture: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Resize a picture, uint8 [h, w, 3], to the network's size and normalise it into `out`, [3, H, W].

        Bicubic and antialiased, without regard to the ratio of the sides; then (pixel / 255 - mean) / std.
        """
        height, width = self.size
        if picture.shape[:2] != self.size:
            resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
            picture = np.asarray(resized)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.settings.mean, self.settings.std))
        np.multiply(picture.transpose(2, 0, 1), np.float32(1 / 255) / std, out=out)
        out -= mean / std

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output for prepared pictures, [N, 3, H, W] with N <= batch_size; float32 [N, h, w].

        Raises `InputError` if the network fails or its output has another shape.
        """
        count = len(images)
        if self._fixed_batch and count < self.batch_size:
            images = np.concatenate([images, np.zeros((self.batch_size - count, *images.shape[1:]), np.float32)])
        try:
            [output] = self._session.run(None, {self._input_name: images})
        except Exception as error:  # onnxruntime's own errors have no common base
            asked = f"a batch of {_as_text(images.shape)}"
            remedy = "try a smaller --batch-size (some networks take 1 only), or another --size"
            raise InputError(f"{self.path} fails on {asked} ({_one_line(error)}): {remedy}") from error
        flat = output[:, 0] if output.ndim == 4 and output.shape[1] == 1 else output
        if flat.ndim != 3 or len(flat) != len(images):
            found = f"gives {_as_text(output.shape)} for a batch of {_as_text(images.shape)}"
            raise InputError(f"{self.path} {found}; {EXPECTED}: export it so, in a module around it if need be")
        result: NDArray[np.float32] = flat[:count].astype(np.float32, copy=False)
        return result


def _open(model: Path, threads: int) -> Any:
    """An onnxruntime session."""
    _require_file(model)
    try:
        import onnxruntime
    except ImportError:
        raise MachineError("onnxruntime is missing: pip install onnxruntime (or onnxruntime-gpu, for a GPU)") from None
    providers: list[Any] = [CPU]
    if GPU in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # finds the CUDA libraries that came with PyTorch
        # Not the default, an exhaustive search, which may choose another algorithm, and round otherwise, in each run.
        providers = [(GPU, {"cudnn_conv_algo_search": "HEURISTIC"}), CPU]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; a warning about an unused weight would break the progress bar
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads
    # Its threads shall sleep while they wait for one another: decoding and encoding need the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(model), options, providers)
    except Exception as error:  # onnxruntime's own errors have no common base
        raise InputError(f"{model} cannot be opened as an ONNX network: {_one_line(error)}") from error


def _agreed_size(model: Path, stated: list[int | None], wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The input's (height, width) from what the file states and what the settings want."""
    height, width = stated
    if wanted is None:
        if height is None or width is None:
            raise InputError(f"{model} takes pictures of any size: give the one it was trained at, --size HEIGHT WIDTH")
        return height, width
    if any(edge not in (None, ours) for edge, ours in zip(stated, wanted, strict=True)):
        raise InputError(
            f"{model} takes pictures of {_as_text(stated)} (height, width), not of size {_as_text(wanted)}"
        )
    return wanted


def _require_file(model: Path) -> None:
    if not model.is_file():
        raise InputError(f"no such file: {model}: give a network in ONNX format")


def model_arguments(sha256: str, settings: DepthModelSettings) -> dict[str, Any]:
    """What decides the outputs of a network, as plain JSON."""
    return {"model_sha256": sha256, **json.loads(json.dumps(asdict(settings)))}


def hash_model(model: Path) -> str:
    """The sha256 of the ONNX file, with the files that hold its weights where it has them outside."""
    _require_file(model)
    content = read_file(model)
    digest = hashlib.sha256(content)
    spans = [(match.end(), match.end() + match[1][0]) for match in EXTERNAL_FILE.finditer(content)]
    for name in sorted({content[start:end] for start, end in spans}):
        digest.update(read_file(model.parent / name.decode()))
    return digest.hexdigest()


def _as_text(shape: Any) -> str:
    return f"[{', '.join('any' if edge is None else str(edge) for edge in shape)}]"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
