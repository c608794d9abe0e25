import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from pipeline.loading.loader import Loader
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, group
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from tests.loading.test_shard_reader import flip_bit
from tests.samples import jpeg, set_paths, smooth_picture, write
from tests.tools.test_train_command import SMALL, one_line_error
from tools.evaluate import main
from tools.train import main as train_main
from train.checkpoint import load, load_run, save, weights
from train.metrics import difference, iou
from train.trivial_baselines import THRESHOLDS


def evaluate(run: Path, shards: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, [str(run), "--shards", str(shards), "--device", "cpu", *flags])


def scored(run: Path, shards: Path, out: Path, *flags: str) -> Any:
    """What evaluation.json says."""
    printed(evaluate(run, shards, "--out", str(out), *flags))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((out / "evaluation.json").read_text(), parse_constant=refuse)


def printed(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    printed(CliRunner().invoke(train_main, ["--shards", str(packed), "--out", str(out), *SMALL, "--epochs", "2"]))
    return out


def cell_slowly(key: str) -> str:
    fg, bg = (int(key.split("_")[place]) for place in (1, 3))
    seen = [group(salt, number) == "train" for salt, number in ((BACKGROUND_SALT, bg), (FOREGROUND_SALT, fg))]
    return "_".join("seen" if known else "new" for known in seen)


def test_all_numbers_are_those_of_a_plain_loop_over_the_sets(trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers = scored(trained, packed, tmp_path / "new", "--split", "all")
    checkpoint = load(trained / "best.pt")
    network = load_run(trained, "best", torch.device("cpu")).network
    baseline = {t: list[float]() for t in THRESHOLDS}
    depths = dict[str, list[Tensor]]()
    for batch in (training := Loader(packed, "train", batch_size=1, size=32)):
        for t in THRESHOLDS:
            baseline[t].append(iou(difference(batch.bg, batch.fg_bg) > t, batch.mask).item())
        assert batch.depth is not None
        for name in ("all", training.key(int(batch.index)).split("_")[3]):
            depths.setdefault(name, []).append(batch.depth / 255)
    threshold = max(THRESHOLDS, key=lambda t: np.mean(baseline[t]))
    found = dict[str, dict[str, dict[str, list[float]]]]()
    for batch in (loader := Loader(packed, "all", batch_size=1, size=32, shuffle=False)):
        with torch.no_grad():
            mask_logits, depth = network(batch.bg, batch.fg_bg)
        assert batch.depth is not None
        key = loader.key(int(batch.index))
        cell = found.setdefault(cell_slowly(key), {"network": {}, "trivial": {}})
        mean = torch.stack(depths.get(key.split("_")[3], depths["all"])).mean(0)
        for who, mask, near in (
            ("network", mask_logits > 0, depth),
            ("trivial", difference(batch.bg, batch.fg_bg) > threshold, mean),
        ):
            cell[who].setdefault("mask_iou", []).append(iou(mask, batch.mask).item())
            cell[who].setdefault("depth_rmse", []).append((near - batch.depth / 255).square().mean().sqrt().item())
    assert (numbers["sets"], numbers["threshold"], numbers["mean_depth_sets"]) == (100, threshold, 64)
    assert (numbers["checkpoint"], numbers["step"]) == (str(trained / "best.pt"), checkpoint.state["step"])
    assert {name: cell["sets"] for name, cell in numbers["cells"].items()} == {
        "new_new": 4, "new_seen": 16, "seen_new": 16, "seen_seen": 64,
    }  # fmt: skip
    for name, of in found.items():
        for who, scores in of.items():
            for score, values in scores.items():
                percentiles = np.percentile(values, [5, 50, 95])
                expected = dict(zip(("p5", "median", "p95"), percentiles, strict=True)) | {"mean": np.mean(values)}
                short = numbers["cells"][name]["scores"][who][score]
                assert {what: short[what] for what in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
                assert short["low"] <= short["mean"] <= short["high"]
    of_headline = sorted(found["new_new"]["network"]["mask_iou"])
    assert [worst["mask_iou"] for worst in numbers["worst"]] == pytest.approx(of_headline, rel=1e-4)


def test_the_tables_show_the_numbers(trained: Path, packed: Path, tmp_path: Path) -> None:
    printout = printed(evaluate(trained, packed, "--split", "test", "--out", str(tmp_path)))
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert (tmp_path / "evaluation.txt").read_text() == printout
    result, trust, *table = printout.splitlines()
    new = numbers["cells"]["new_new"]["scores"]
    shown = {who: {name: f"{of['mean']:.3f}" for name, of in scores.items()} for who, scores in new.items()}
    network, trivial = shown["network"], shown["trivial"]
    assert result == (
        f"mask IoU {network['mask_iou']}, baseline {trivial['mask_iou']}; "
        f"depth SSIM {network['depth_ssim']}, baseline {trivial['depth_ssim']}"
    )
    assert trust == "1 set on 1 background and 1 foreground: scores hold for this background alone"
    where = f"{trained / 'best.pt'} (step {numbers['step']}) on {packed}, split test: 81 sets at 32 x 32"
    assert table[0] == where
    assert max(map(len, table[1:])) <= 100
    assert "  new background, new foreground (headline): 1 set on 1 background" in table
    start = table.index(next(line for line in table if line.startswith("mask  ")))
    seen = numbers["cells"]["seen_seen"]["scores"]
    row = table.index("seen background, seen foreground", start)
    for place, who in ((1, "network"), (2, "trivial")):
        cells = [float(cell) for cell in re.sub(r".*> \d+|\S+-\S+|network", "", table[row + place]).split()]
        names = ("mask_iou", "mask_dice", "boundary_f_1px", "boundary_f_2px")
        expected = [seen[who][name]["mean"] for name in names] + [seen[who]["mask_dice"]["p5"]]
        assert cells == pytest.approx(expected, abs=6e-4)
    assert f"threshold {numbers['threshold']}: chosen on 64 sets of the split train" in table
    assert "mean depth: of 64 training sets on the same background; on new backgrounds of all of them" in table
    assert "LEAKING" not in printout


def test_validation_of_the_best_epoch_is_found_again(trained: Path, packed: Path, tmp_path: Path) -> None:
    found = scored(trained, packed, tmp_path, "--split", "val")["cells"]["new_new"]
    logged = load(trained / "best.pt").state["scores"]
    assert found["sets"] == logged["sets"]
    for name in ("mask_iou", "mask_dice", "depth_ssim", "depth_rmse"):
        assert found["scores"]["network"][name]["mean"] == pytest.approx(logged[name], abs=1e-4)


def test_tta_scores_the_mean_over_the_mirror_beside_the_same_baselines_and_says_so(
    trained: Path, packed: Path, tmp_path: Path
) -> None:
    plain, tta = (
        scored(trained, packed, tmp_path / f"out{len(flags)}", "--split", "val", *flags) for flags in ([], ["--tta"])
    )
    assert (plain["tta"], tta["tta"]) == (False, True)
    network = load_run(trained, "best", torch.device("cpu")).network
    ious, errors = list[float](), list[float]()
    for batch in Loader(packed, "val", batch_size=1, size=32, shuffle=False):
        with torch.no_grad():
            mask_logits, depth = network(batch.bg, batch.fg_bg)
            mirrored_logits, mirrored_depth = network(batch.bg.flip(3), batch.fg_bg.flip(3))
        assert batch.depth is not None
        mask = mask_logits.sigmoid() + mirrored_logits.sigmoid().flip(3) > 1
        ious.append(iou(mask, batch.mask).item())
        errors.append(((depth + mirrored_depth.flip(3)) / 2 - batch.depth / 255).square().mean().sqrt().item())
    of_plain, of_tta = (numbers["cells"]["new_new"]["scores"] for numbers in (plain, tta))
    assert of_tta["network"]["mask_iou"]["mean"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert of_tta["network"]["depth_rmse"]["mean"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert of_tta["network"] != of_plain["network"]
    assert of_tta["trivial"] == of_plain["trivial"]
    differing = {name for name, value in tta.items() if value != plain[name]}
    assert differing <= {"tta", "cells", "worst"}
    lines, told = ((tmp_path / name / "evaluation.txt").read_text().splitlines() for name in ("out0", "out1"))
    assert told[0].startswith("TTA: mask IoU ")
    assert told[2] == lines[2].replace(") on ", "; TTA: means over the pictures and their mirror) on ")
    assert "TTA" not in "".join(lines)


def test_the_last_checkpoint_can_be_asked_for(trained: Path, packed: Path) -> None:
    assert f"{trained / 'last.pt'} (step 8)" in printed(evaluate(trained, packed, "--checkpoint", "last"))


def test_the_same_command_gives_the_same_bytes(trained: Path, packed: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        scored(trained, packed, tmp_path / out)
    for name in ("evaluation.json", "evaluation.txt", "worst.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sets_without_depth_are_scored_by_their_mask(trained: Path, packed: Path, bare: Path, tmp_path: Path) -> None:
    whole, alone = (scored(trained, of, tmp_path / of.parent.name, "--split", "all") for of in (packed, bare))
    table = (tmp_path / bare.parent.name / "evaluation.txt").read_text()
    assert "depth: not scored, the sets have none" in table
    assert "trained on other shards" in table
    assert not alone["trained_on_these_shards"]
    for name, cell in alone["cells"].items():
        for who in ("network", "trivial"):
            assert not [score for score in cell["scores"][who] if "depth" in score or "fitted" in score]
            assert all(whole["cells"][name]["scores"][who][score] == of for score, of in cell["scores"][who].items())
    assert not [score for score in alone["label_after_jpeg"]["75"] if "depth" in score]
    assert alone["worst"] == whole["worst"]


def test_a_network_without_depth_is_scored_by_its_mask(mask_alone: Path, packed: Path, tmp_path: Path) -> None:
    numbers = scored(mask_alone, packed, tmp_path, "--split", "all")
    table = (tmp_path / "evaluation.txt").read_text()
    assert "depth: not scored, the network has none" in table
    assert "depth_ssim" not in numbers["cells"]["new_new"]["scores"]["trivial"]
    assert numbers["mean_depth_sets"] == 0
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width == 4 + 4 * (128 + 4)


def test_the_picture_shows_the_worst_sets_of_the_headline(trained: Path, packed: Path, tmp_path: Path) -> None:
    scored(trained, packed, tmp_path)
    [batch] = Loader(packed, "test", batch_size=1, size=32)
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.size == (4 + 6 * (128 + 4), 16 + (128 + 16 + 4))
        shown = np.asarray(picture)[16 : 16 + 128 : 4, 4 : 4 + 128 : 4, 0]
    assert np.array_equal(shown, batch.bg[0, 0].numpy())


def test_training_sets_can_be_scored_and_fill_one_cell(trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers = scored(trained, packed, tmp_path, "--split", "train")
    table = (tmp_path / "evaluation.txt").read_text()
    assert "new background, new foreground (headline): EMPTY, no set is in it" in table
    assert "seen background, new foreground: EMPTY" in table
    assert {name: cell["sets"] for name, cell in numbers["cells"].items() if cell["sets"]} == {"seen_seen": 64}
    assert numbers["cells"]["new_new"] == {
        "title": "new background, new foreground", "sets": 0, "sets_in_cell": 0, "backgrounds": 0, "foregrounds": 0,
        "scores": {},
    }  # fmt: skip
    assert len(numbers["worst"]) == 8


def test_the_peer_protocol_says_everywhere_that_it_leaks(trained: Path, packed: Path, tmp_path: Path) -> None:
    numbers = scored(trained, packed, tmp_path, "--peer-protocol")
    table = (tmp_path / "evaluation.txt").read_text()
    loader = Loader(packed, "all", batch_size=1, size=32)
    keys = [key for key in (loader.key(row) for row in range(100)) if group("peer", key) == "test"]
    both_seen = sum(cell_slowly(key) == "seen_seen" for key in keys)
    assert numbers["sets"] == numbers["cells"]["leaking"]["sets"] == len(keys) > 1
    assert numbers["sets_trained_on"] == both_seen > 0
    assert numbers["protocol"].startswith("LEAKING")
    assert numbers["cells"]["leaking"]["title"].startswith("LEAKING")
    assert f"and {both_seen} of these very sets in that of this run" in table
    assert table.count("LEAKING") > 3
    assert "headline" not in table
    assert "sets of the split peer-train" in numbers["threshold_from"]


def test_masks_that_are_all_blank_have_no_foreground_to_score(trained: Path, tmp_path: Path) -> None:
    ids = {
        of: [next(n for n in range(99) if group(salt, n) == of) for salt in (BACKGROUND_SALT, FOREGROUND_SALT)]
        for of in ("train", "test")
    }
    number = 0
    for bg, fg in ids.values():
        write(tmp_path / f"source/bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
        for _ in range(2):
            parts = [jpeg(smooth_picture(number)), jpeg(np.zeros_like(smooth_picture(0, channels=1))),
                     jpeg(smooth_picture(number + 1, channels=1))]  # fmt: skip
            for path, content in zip(set_paths(bg, fg, number), parts, strict=True):
                write(tmp_path / "source" / path, content)
            number += 1
    pack(tmp_path / "source", tmp_path / "shards", PackOptions(workers=1, accept_suspicious=True))
    numbers = scored(trained, tmp_path / "shards", tmp_path / "out")
    cell = numbers["cells"]["new_new"]["scores"]["network"]
    assert cell["depth_rmse_foreground"]["mean"] is None
    assert cell["depth_rmse_foreground"]["sets"] == 0
    assert cell["depth_rmse"]["sets"] == 2
    assert "foreground: 0 of 2 sets have it" in (tmp_path / "out" / "evaluation.txt").read_text()


def test_without_training_sets_the_baseline_is_the_best_possible_on_these(trained: Path, tmp_path: Path) -> None:
    bg, fg = (next(n for n in range(99) if group(salt, n) == "test") for salt in (BACKGROUND_SALT, FOREGROUND_SALT))
    write(tmp_path / f"source/bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
    for number in range(3):
        for part, path in enumerate(set_paths(bg, fg, number)):
            write(tmp_path / "source" / path, jpeg(smooth_picture(10 * number + part, channels=1 if part else 3)))
    pack(tmp_path / "source", tmp_path / "shards", PackOptions(workers=1, accept_suspicious=True))
    numbers = scored(trained, tmp_path / "shards", tmp_path / "out")
    table = (tmp_path / "out" / "evaluation.txt").read_text()
    assert f"threshold {numbers['threshold']}: chosen on these sets themselves: the best possible on them" in table
    assert "mean depth" not in table
    [batch] = Loader(tmp_path / "shards", "test", batch_size=3, size=32)
    means = [iou(difference(batch.bg, batch.fg_bg) > t, batch.mask).mean().item() for t in THRESHOLDS]
    assert (numbers["sets"], numbers["threshold"]) == (3, THRESHOLDS[means.index(max(means))])
    found = numbers["cells"]["new_new"]["scores"]["trivial"]["mask_iou"]
    assert found["mean"] == pytest.approx(max(means), rel=1e-5)
    assert found["low"] is None  # one background


def test_damaged_sets_are_left_out_and_told(trained: Path, packed: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    flip_bit(shards / "sets-000003.tar", 512 + 30)
    numbers = scored(trained, shards, tmp_path / "out", "--split", "all")
    table = (tmp_path / "out" / "evaluation.txt").read_text()
    assert "99 of 100 sets at" in table
    assert "sets left out as damaged: 1, such as " in table
    assert numbers["sets_damaged"] == 1


def test_a_network_of_no_numbers_is_one_line(trained: Path, packed: Path, tmp_path: Path) -> None:
    checkpoint = load(trained / "best.pt")
    name = next(name for name in weights(checkpoint) if name.startswith("mask_head"))
    weights(checkpoint)[name].fill_(3e38)
    save(tmp_path / "best.pt", checkpoint)
    result = evaluate(tmp_path, packed, "--out", str(tmp_path / "out"))
    assert "best.pt: the network predicts values that are no numbers" in one_line_error(result)
    assert not (tmp_path / "out").exists()


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


def test_an_empty_headline_is_named_and_the_others_are_scored(trained: Path, s15: Path, tmp_path: Path) -> None:
    pack(s15, tmp_path / "shards", PackOptions(workers=1))
    numbers = scored(trained, tmp_path / "shards", tmp_path / "out")
    assert numbers["cells"]["new_new"]["sets"] == 0
    assert numbers["sets"] > 0
    table = (tmp_path / "out" / "evaluation.txt").read_text()
    assert "new background, new foreground (headline): EMPTY, no set is in it" in table


def test_an_empty_split_is_one_line_and_writes_nothing(trained: Path, tmp_path: Path) -> None:
    bg, fg = (next(n for n in range(99) if group(salt, n) == "val") for salt in (BACKGROUND_SALT, FOREGROUND_SALT))
    write(tmp_path / f"source/bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
    for part, path in enumerate(set_paths(bg, fg, 0)):
        write(tmp_path / "source" / path, jpeg(smooth_picture(part, channels=1 if part else 3)))
    pack(tmp_path / "source", tmp_path / "shards", PackOptions(workers=1, accept_suspicious=True))
    result = evaluate(trained, tmp_path / "shards", "--out", str(tmp_path / "out"))
    assert "is in the split test-cells (1 set on 1 background)" in one_line_error(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
def test_the_gpu_scores_as_the_cpu_does(trained: Path, packed: Path, tmp_path: Path) -> None:
    on_cpu, on_gpu = (
        scored(trained, packed, tmp_path / device, "--split", "all", "--device", device)["cells"]["seen_seen"]["scores"]
        for device in ("cpu", "gpu")
    )
    for who, scores in on_cpu.items():
        for name, of in scores.items():
            # bfloat16, and other rounding in the pictures. AbsRel alone has no bound: it is an error in truths of 0.05.
            bounded = "abs_rel" not in name
            near = pytest.approx(of["mean"], rel=None if bounded else 0.1, abs=0.05 if bounded else None)
            assert on_gpu[who][name]["mean"] == near, name


def test_a_run_behind_a_url_is_scored_as_from_a_folder_and_so_written(
    trained: Path, packed: Path, bucket: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, bucket / "run")
    printed(evaluate(trained, packed, "--out", str(tmp_path / "here")))
    told = printed(
        CliRunner().invoke(main, ["s3://bucket/run", "--shards", str(packed), "--out", "s3://bucket/scores"])
    )
    assert "s3://bucket/run/best.pt (step" in told
    for name in ("evaluation.json", "evaluation.txt", "worst.png"):
        found, expected = ((folder / name).read_bytes() for folder in (bucket / "scores", tmp_path / "here"))
        assert found.replace(b"s3://bucket/run/", f"{trained}/".encode()) == expected
    message = one_line_error(CliRunner().invoke(main, ["s3://bucket/other", "--shards", str(packed)]))
    assert "s3://bucket/other: no checkpoint behind it; expected a run of fgbg-train (its --out)" in message
