import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.loader import Loader
from pipeline.packing.pack import PackOptions, pack
from pipeline.split import BACKGROUND_SALT, FOREGROUND_SALT, group
from tests.samples import jpeg, set_paths, smooth_picture, write
from tests.test_store import flip_bit
from tests.test_train_command import SMALL, one_line_error
from tools.evaluate import main
from tools.train import main as train_main
from train.checkpoint import load
from train.metrics import difference, iou
from train.model import UNet
from train.validation import THRESHOLDS


def evaluate(run: Path, shards: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, [str(run), "--shards", str(shards), "--device", "cpu", *flags])


def printed(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    printed(CliRunner().invoke(train_main, ["--shards", str(packed), "--out", str(out), *SMALL, "--epochs", "2"]))
    return out


@pytest.fixture(scope="module")
def mask_alone(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mask_alone") / "run"
    printed(CliRunner().invoke(train_main, ["--shards", str(bare), "--out", str(out), *SMALL, "--no-depth"]))
    return out


def test_all_numbers_are_those_of_a_plain_loop_over_the_sets(trained: Path, packed: Path, tmp_path: Path) -> None:
    printed(evaluate(trained, packed, "--split", "all", "--json", str(tmp_path / "new" / "numbers.json")))
    numbers = json.loads((tmp_path / "new" / "numbers.json").read_text())
    checkpoint = load(trained / "best.pt")
    network = UNet(4)
    network.load_state_dict(dict(checkpoint.network))
    network.eval()
    baseline = {t: list[float]() for t in THRESHOLDS}
    for batch in Loader(packed, "train", 1, 32):
        for t in THRESHOLDS:
            baseline[t].append(iou(difference(batch.bg, batch.fg_bg) > t, batch.mask).item())
    threshold = max(THRESHOLDS, key=lambda t: np.mean(baseline[t]))
    found = {"mask_iou": list[float](), "baseline_iou": list[float](), "depth_rmse": list[float]()}
    for batch in Loader(packed, "all", 1, 32, shuffle=False):
        with torch.no_grad():
            mask_logits, depth = network(batch.bg, batch.fg_bg)
        assert batch.depth is not None
        found["mask_iou"].append(iou(mask_logits > 0, batch.mask).item())
        found["baseline_iou"].append(iou(difference(batch.bg, batch.fg_bg) > threshold, batch.mask).item())
        found["depth_rmse"].append((depth - batch.depth / 255).square().mean().sqrt().item())
    assert (numbers["sets"], numbers["threshold"]) == (100, threshold)
    assert (numbers["checkpoint"], numbers["step"]) == (str(trained / "best.pt"), checkpoint.state["step"])
    for name, values in found.items():
        percentiles = np.percentile(values, [5, 50, 95])
        expected = dict(zip(("p5", "median", "p95"), percentiles, strict=True)) | {"mean": np.mean(values)}
        assert numbers["scores"][name] == pytest.approx(expected, rel=1e-4)
    assert [worst["mask_iou"] for worst in numbers["worst"]] == pytest.approx(sorted(found["mask_iou"])[:8], rel=1e-4)


def test_the_table_shows_the_numbers(trained: Path, packed: Path, tmp_path: Path) -> None:
    table = printed(evaluate(trained, packed, "--split", "all", "--json", str(tmp_path / "n.json"))).splitlines()
    numbers = json.loads((tmp_path / "n.json").read_text())
    scores = numbers["scores"]
    assert table[0] == f"{trained / 'best.pt'} (step {numbers['step']}) on {packed}, split all: 100 sets at 32 x 32"
    assert f"|fg_bg - bg| > {numbers['threshold']}" in table[1]
    rows = {line[:10].strip(): [float(cell) for cell in line[10:].split()] for line in table[3:7]}
    for title, mask in (("mask IoU", "iou"), ("mask Dice", "dice")):
        expected = [scores[f"{who}_{mask}"][what] for who in ("mask", "baseline") for what in ("mean", "p5")]
        assert rows[title] == pytest.approx(expected, abs=6e-4)
    assert rows["depth SSIM"] == pytest.approx([scores["depth_ssim"][what] for what in ("mean", "p5")], abs=6e-4)
    assert rows["depth RMSE"] == pytest.approx([scores["depth_rmse"][what] for what in ("mean", "p95")], abs=6e-4)
    assert table[7:] == [f"threshold {numbers['threshold']}: chosen on 64 sets of the split train"]


def test_validation_of_the_best_epoch_is_found_again(trained: Path, packed: Path, tmp_path: Path) -> None:
    printed(evaluate(trained, packed, "--split", "val", "--json", str(tmp_path / "n.json")))
    scores = json.loads((tmp_path / "n.json").read_text())["scores"]
    logged = load(trained / "best.pt").state["scores"]
    assert {name: of_sets["mean"] for name, of_sets in scores.items()} | {"sets": 1} == logged


def test_the_last_checkpoint_can_be_asked_for(trained: Path, packed: Path) -> None:
    assert f"{trained / 'last.pt'} (step 8)" in printed(evaluate(trained, packed, "--checkpoint", "last"))


def test_sets_without_depth_are_scored_by_their_mask(trained: Path, packed: Path, bare: Path, tmp_path: Path) -> None:
    for name, shards in (("whole", packed), ("bare", bare)):
        table = printed(evaluate(trained, shards, "--split", "all", "--json", str(tmp_path / f"{name}.json")))
        assert ("depth: not scored, the sets have none" in table) == (shards == bare)
    whole, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "bare"))
    assert not [name for name in alone["scores"] if "depth" in name]
    assert all(alone["scores"][name] == whole["scores"][name] for name in alone["scores"] if name != "loss")
    assert alone["worst"] == whole["worst"]


def test_a_network_without_depth_is_scored_by_its_mask(mask_alone: Path, packed: Path, tmp_path: Path) -> None:
    table = printed(evaluate(mask_alone, packed, "--split", "all", "--picture", str(tmp_path / "p.png")))
    assert "depth: not scored, the network has none" in table
    assert "depth SSIM" not in table
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width == 4 + 4 * (128 + 4)


def test_the_picture_shows_the_worst_and_some_median_sets(trained: Path, packed: Path, tmp_path: Path) -> None:
    for split, rows in (("all", 12), ("test", 1)):
        printed(evaluate(trained, packed, "--split", split, "--picture", str(tmp_path / "new" / "p.png")))
        with Image.open(tmp_path / "new" / "p.png") as picture:
            assert picture.size == (4 + 6 * (128 + 4), 16 + rows * (128 + 16 + 4))
    printed(evaluate(trained, packed, "--split", "test", "--json", str(tmp_path / "n.json")))
    [batch] = Loader(packed, "test", 1, 32)
    with Image.open(tmp_path / "new" / "p.png") as picture:
        shown = np.asarray(picture)[16 : 16 + 128 : 4, 4 : 4 + 128 : 4, 0]
    assert np.array_equal(shown, batch.bg[0, 0].numpy())


def test_without_training_sets_the_baseline_is_the_best_possible_on_these(trained: Path, tmp_path: Path) -> None:
    bg, fg = (next(n for n in range(99) if group(salt, n) == "test") for salt in (BACKGROUND_SALT, FOREGROUND_SALT))
    write(tmp_path / f"source/bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
    for number in range(3):
        for part, path in enumerate(set_paths(bg, fg, number)):
            write(tmp_path / "source" / path, jpeg(smooth_picture(10 * number + part, channels=1 if part else 3)))
    pack(tmp_path / "source", tmp_path / "shards", PackOptions(workers=1))
    table = printed(evaluate(trained, tmp_path / "shards", "--json", str(tmp_path / "n.json")))
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert f"threshold {numbers['threshold']}: chosen on these sets themselves: the best possible on them" in table
    [batch] = Loader(tmp_path / "shards", "test", 3, 32)
    means = [iou(difference(batch.bg, batch.fg_bg) > t, batch.mask).mean().item() for t in THRESHOLDS]
    assert (numbers["sets"], numbers["threshold"]) == (3, THRESHOLDS[means.index(max(means))])
    assert numbers["scores"]["baseline_iou"]["mean"] == pytest.approx(max(means), rel=1e-5)


def test_damaged_sets_are_left_out_and_told(trained: Path, packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    flip_bit(shards / "sets-000003.tar", 512 + 30)
    table = printed(evaluate(trained, shards, "--split", "all", "--json", str(tmp_path / "n.json")))
    assert "99 sets at" in table
    assert "sets left out as damaged: 1, such as " in table
    assert json.loads((tmp_path / "n.json").read_text())["sets_damaged"] == 1


def test_what_is_not_there_is_one_line(trained: Path, packed: Path, tmp_path: Path) -> None:
    nothing = one_line_error(evaluate(tmp_path / "nothing", packed))
    assert f"{tmp_path / 'nothing'}: no such folder; expected a run of fgbg-train" in nothing
    assert f"{tmp_path}: no checkpoint in it; expected a run" in one_line_error(evaluate(tmp_path, packed))
    missing = one_line_error(evaluate(trained, tmp_path / "shards"))
    assert f"no shards in {tmp_path / 'shards'}: manifest.json is missing" in missing
    shutil.copy(trained / "last.pt", tmp_path)
    early = one_line_error(evaluate(tmp_path, packed))
    assert "best.pt: no such checkpoint; the run has had no validation yet; there is --checkpoint last" in early
    (tmp_path / "best.pt").write_bytes(b"PK")
    assert "best.pt: not a whole checkpoint" in one_line_error(evaluate(tmp_path, packed))


def test_an_empty_split_is_one_line_and_writes_nothing(trained: Path, s15: Path, tmp_path: Path) -> None:
    pack(s15, tmp_path / "shards", PackOptions(workers=1))
    result = evaluate(trained, tmp_path / "shards", "--json", str(tmp_path / "n.json"))
    assert "is in the split test (4 sets on 10 backgrounds)" in one_line_error(result)
    assert not (tmp_path / "n.json").exists()


@pytest.mark.gpu
def test_the_gpu_scores_as_the_cpu_does(trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers = []
    for device in ("cpu", "gpu"):
        flags = ["--split", "all", "--device", device, "--json", str(tmp_path / device)]
        printed(evaluate(trained, packed, *flags, "--picture", str(tmp_path / "p.png")))
        numbers.append(json.loads((tmp_path / device).read_text())["scores"])
    for name in numbers[0]:
        assert numbers[1][name]["mean"] == pytest.approx(numbers[0][name]["mean"], abs=0.03)  # bfloat16
