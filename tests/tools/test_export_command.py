import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

import train.export
from pipeline.installation import install_hint
from pipeline.loading.loader import Loader
from tests.samples import files_below, write
from tests.tools.test_train_command import one_line_error, printed
from tools.export import main
from train.checkpoint import Run, load, load_run, weights
from train.export import Exported, checked_pictures

SIZE = 32  # of SMALL
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def export(run: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, [str(run), *flags])


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "new" / "network.onnx"
    text = printed(export(trained, "--onnx", str(path)))
    assert "differs from PyTorch by at most" in text
    assert "32 x 32 pixels" in text
    return path


def computed(path: Path, background: NDArray[np.uint8], overlay: NDArray[np.uint8]) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"background": background, "overlay": overlay})


def opened(run: Path) -> Run:
    return load_run(run, "best", torch.device("cpu"))


@pytest.mark.parametrize("count", [1, 5, 8])
def test_of_gray_pictures_it_gives_what_the_network_gives(
    trained: Path, exported: Path, packed: Path, count: int
) -> None:
    batch = next(iter(Loader(packed, "all", batch_size=count, size=SIZE, shuffle=False)))
    with torch.no_grad():
        mask_logits, depth = opened(trained).network(batch.bg, batch.fg_bg)
    found = computed(exported, *(planes[:, 0, :, :, None].numpy() for planes in (batch.bg, batch.fg_bg)))
    assert np.ptp(found[0]) > 0.001
    for ours, theirs in zip((mask_logits.sigmoid(), depth), found, strict=True):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-5)


def test_of_colours_it_gives_what_their_luma_gives(exported: Path) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (2, 3, SIZE, SIZE, 3), np.uint8)
    gray = [np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in of])[..., None] for of in pictures]
    for ours, theirs in zip(computed(exported, *gray), computed(exported, *pictures), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_luma_is_that_of_pillow_for_all_colours() -> None:
    levels = np.arange(0, 256, 3).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, len(levels), 3)
    ours = Exported(torch.nn.Identity()).gray(torch.from_numpy(colours))
    assert (ours[0, 0].numpy() == np.asarray(Image.fromarray(colours[0]).convert("L"))).all()
    gray = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(Exported(torch.nn.Identity()).gray(gray)[:, 0], gray[..., 0])


def test_inputs_and_outputs_are_named_and_of_any_batch(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert [(node.name, node.type, node.shape) for node in session.get_inputs()] == [
        (name, "tensor(uint8)", ["batch", SIZE, SIZE, "channels"]) for name in ("background", "overlay")
    ]
    assert [(node.name, node.type, node.shape) for node in session.get_outputs()] == [
        (name, "tensor(float)", ["batch", 1, SIZE, SIZE]) for name in ("mask", "depth")
    ]


def test_it_is_one_valid_file_that_says_of_which_run(trained: Path, exported: Path, packed: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["network.onnx"]
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    said = {entry.key: entry.value for entry in model.metadata_props}
    checkpoint = load(trained / "best.pt")
    assert json.loads(said["settings"])["size"] == SIZE
    assert said["manifest_sha256"] == checkpoint.state["manifest"]
    assert said["step"] == str(checkpoint.state["step"])
    assert said["torch_version"] == torch.__version__


def test_safetensors_hold_the_weights(trained: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "new" / "weights.safetensors"
    assert str(path) in printed(export(trained, "--safetensors", str(path), "--checkpoint", "last"))
    checkpoint = load(trained / "last.pt")
    with safe_open(path, "pt") as file:
        assert file.metadata()["manifest_sha256"] == checkpoint.state["manifest"]
        assert set(file.keys()) == set(checkpoint.network)
        for name, weight in weights(checkpoint).items():
            assert torch.equal(file.get_tensor(name), weight)


def test_two_exports_of_a_run_are_the_same_bytes(trained: Path, exported: Path, tmp_path: Path) -> None:
    printed(export(trained, "--onnx", str(tmp_path / "again.onnx")))
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    assert b".py" not in exported.read_bytes()  # places in our source, which lies elsewhere on other machines
    for number in range(3):  # of six entries of metadata, in any order
        printed(export(trained, "--safetensors", str(tmp_path / f"{number}.safetensors")))
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(3)}) == 1


def test_a_run_without_depth_gives_the_mask_alone(mask_alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "mask.onnx"
    printed(export(mask_alone, "--onnx", str(path)))
    [mask] = computed(path, *np.zeros((2, 3, SIZE, SIZE, 1), np.uint8))
    assert mask.shape == (3, 1, SIZE, SIZE)


def test_a_file_that_computes_otherwise_is_not_written(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(network: Exported, size: int) -> Any:
        with torch.no_grad():
            next(network.parameters()).mul_(2)
        return onnx.load(exported)

    monkeypatch.setattr(train.export, "onnx_model", spoilt)
    line = one_line_error(export(trained, "--onnx", str(tmp_path / "n.onnx")))
    assert "differs from PyTorch by" in line
    assert "at most 1e-04 expected" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line_with_the_remedy(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = one_line_error(export(trained, "--onnx", str(tmp_path / "n.onnx")))
    assert f"{package} is missing" in line
    assert line.endswith(f": {install_hint('export')}\n")
    assert not list(tmp_path.iterdir())


def test_nothing_to_write_is_wrong_usage(trained: Path) -> None:
    result = export(trained)
    assert result.exit_code == 2
    assert "--onnx FILE, --safetensors FILE or both" in result.output


def test_no_run_is_one_line(tmp_path: Path) -> None:
    assert "expected a run" in one_line_error(export(tmp_path / "none", "--onnx", str(tmp_path / "n.onnx")))


def test_pictures_to_compare_on_are_noise_and_streets() -> None:
    for channels in (1, 3):
        noise, streets = checked_pictures(np.random.default_rng(0), 2, 64, channels)
        for pictures in (*noise.values(), *streets.values()):
            assert pictures.shape == (2, 64, 64, channels)
            assert pictures.dtype == np.uint8
        changed = (streets["background"] != streets["overlay"]).mean()
        assert 0.01 < changed < 0.5


def test_the_exporter_leaves_logging_as_it_was(exported: Path) -> None:
    assert exported.is_file()
    assert logging.getLogger("torch.onnx._internal.exporter._registration").level == logging.NOTSET


def test_a_place_that_cannot_be_written_is_refused_before_the_export(trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "file", b"mine")
    for flag in ("--onnx", "--safetensors"):
        assert "is a folder: give the name of a file" in one_line_error(export(trained, flag, str(tmp_path)))
        assert "file is a file: give a folder" in one_line_error(export(trained, flag, str(tmp_path / "file/below")))
    assert files_below(tmp_path) == {"file": b"mine"}


def test_the_run_may_be_behind_a_url(trained: Path, bucket: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, bucket / "run")
    paths = tmp_path / "remote", tmp_path / "local"
    for run, path in zip(("s3://bucket/run", str(trained)), paths, strict=True):
        printed(CliRunner().invoke(main, [run, "--safetensors", str(path)]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
