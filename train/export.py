"""A trained network in the files of others: ONNX, with its pre-processing inside, and safetensors."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.composing.synthetic.source import Synthetic
from pipeline.errors import InputError
from pipeline.installation import install_hint
from pipeline.resume import atomic_file
from train.checkpoint import Run

if TYPE_CHECKING:
    from onnx import ModelProto

PixelArray = NDArray[np.uint8]
# Of 65,536, ITU-R BT.601, as Pillow has them: all sums stay below 2^24, so that float32 is exact.
LUMA = (19595.0, 38470.0, 7471.0)
TOLERANCE = 1e-4
"""Largest difference, of outputs in 0..1, between PyTorch and onnxruntime with which a file is written."""
CHECKED_BATCHES = (1, 5)  # sets
OPSET = 18
INPUTS = ("background", "overlay")


class Exported(nn.Module):
    """A network from pictures as they are decoded to probabilities."""

    luma: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("luma", torch.tensor(LUMA), persistent=False)

    def forward(self, background: Tensor, overlay: Tensor) -> tuple[Tensor, ...]:
        """Two uint8 [N,H,W,C], C 3 (RGB) or 1 (gray) -> mask and, where there is one, depth; float32 [N,1,H,W]."""
        mask_logits, depth = self.network(self.gray(background), self.gray(overlay))
        mask = torch.sigmoid(mask_logits)
        return (mask,) if depth is None else (mask, depth)

    def gray(self, pictures: Tensor) -> Tensor:
        """uint8 [N,H,W,C] -> uint8 [N,1,H,W]: luma, as Pillow rounds it; one channel broadcasts, and stays as it is."""
        luma = ((pictures.float() * self.luma).sum(dim=3) + 32768) / 65536
        return luma.to(torch.uint8).unsqueeze(1)  # the conversion cuts off


def run_metadata(run: Run) -> dict[str, str]:
    """What an exported file says of its run: settings, step, hash of the shards' manifest, versions."""
    return {
        "checkpoint": run.checkpoint.name.removesuffix(".pt"),
        "step": str(run.step),
        "settings": json.dumps(run.config.settings()),
        "manifest_sha256": run.manifest,
        "fgbg_version": version("fgbg"),
        "torch_version": torch.__version__,
    }


def export_onnx(run: Run, path: Path) -> float:
    """Write the network of a run, on the CPU, as one ONNX file, once onnxruntime computes the same.

    Inputs `background` and `overlay`, uint8 [batch, H, W, channels] at the run's size, channels 3 (RGB) or 1 (gray);
    outputs `mask` and, where the run has it, `depth`, float32 [batch, 1, H, W] in 0..1. Returns the largest difference.
    Raises `InputError`, and writes nothing, where a package is missing or a difference is above `TOLERANCE`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter needs it, and says so in many lines
    except ImportError as error:
        raise InputError(f"{error.name} is missing, which an export needs: {install_hint('export')}") from error
    exported = Exported(run.network).eval()
    model = onnx_model(exported, run.config.size)
    for key, value in run_metadata(run).items():
        model.metadata_props.add(key=key, value=value)
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    difference = largest_difference(exported, session, run.config.size)
    if not difference <= TOLERANCE:
        raise InputError(
            f"{path} is not written: onnxruntime {onnxruntime.__version__} differs from PyTorch by {difference:.1e}, "
            f"at most {TOLERANCE:.0e} expected: try other versions of onnxruntime and onnxscript"
        )
    write(path, content)
    return difference


def export_safetensors(run: Run, path: Path) -> None:
    """Write the weights of a run, named as in its checkpoint, with `run_metadata`."""
    from safetensors.torch import save

    weights = {name: weight.detach().cpu().contiguous() for name, weight in run.network.state_dict().items()}
    content = save(weights, run_metadata(run))
    write(path, sorted_header(content))


def sorted_header(content: bytes) -> bytes:
    """A file in the format safetensors with the names in its header sorted: the library has metadata in any order.

    The format: the header's length as 8 bytes, little-endian; the header, JSON padded with spaces; the tensors.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return content[:8] + header.encode().ljust(length) + content[8 + length :]


def onnx_model(exported: Exported, size: int) -> "ModelProto":
    """The ONNX graph for pictures of `size` x `size` pixels, weights inside."""
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.onnx.export(
            exported,
            (example, example.clone()),
            input_names=INPUTS,
            output_names=("mask", "depth")[: len(exported(example, example))],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program
    model: ModelProto = program.model_proto
    for node in (*model.graph.input, *model.graph.output):
        dimensions = node.type.tensor_type.shape.dim
        dimensions[0].dim_param = "batch"
        if node.name in INPUTS:
            # Traced with three; the product with the luma's weights broadcasts, so one is as good.
            dimensions[3].dim_param = "channels"
    del model.graph.value_info[:]  # shapes in between, which the number of channels changes
    for of in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del of.metadata_props[:]  # where in our source each comes from, with this machine's paths
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of PyTorch's own code and of a torchvision that is not there; else as it is."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def largest_difference(exported: Exported, session: Any, size: int) -> float:
    """Between PyTorch and an onnxruntime session, over all outputs, batches of 1 and 5, gray and RGB."""
    random, largest = np.random.default_rng(0), 0.0
    for count in CHECKED_BATCHES:
        for channels in (1, 3):
            for pictures in checked_pictures(random, count, size, channels):
                with torch.no_grad():
                    expected = exported(*map(torch.from_numpy, pictures.values()))
                for ours, theirs in zip(expected, session.run(None, pictures), strict=True):
                    largest = max(largest, float(np.abs(ours.numpy() - theirs).max()))
    return largest


def checked_pictures(random: np.random.Generator, count: int, size: int, channels: int) -> list[dict[str, PixelArray]]:
    """Inputs to compare on, uint8 [count, size, size, channels]: noise, and rendered streets with foregrounds."""
    shape = (count, size, size, channels)
    noise = [random.integers(0, 256, shape, np.uint8) for _ in INPUTS]
    source, streets = Synthetic(seed=0, streets=count, objects=count), list[list[Image.Image]]()
    for number in range(count):
        street = Image.fromarray(source.background(number).rgb)
        thing = Image.fromarray(source.foreground(number).rgba)
        thing.thumbnail((street.width // 2, street.height // 2))
        overlay = street.copy()
        overlay.paste(thing, (street.width // 4, street.height // 4), thing)
        streets.append([street, overlay])
    mode = "RGB" if channels == 3 else "L"
    rendered = [
        np.stack([np.asarray(picture.convert(mode).resize((size, size))) for picture in pictures]).reshape(shape)
        for pictures in zip(*streets, strict=True)
    ]
    return [dict(zip(INPUTS, pictures, strict=True)) for pictures in (noise, rendered)]


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content)
