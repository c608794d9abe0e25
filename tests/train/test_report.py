"""report.html: well-formed, by itself, and every number in it is that of the run."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import train.report
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.loader import Loader
from pipeline.loading.split import BACKGROUND_SALT, FOREGROUND_SALT, group
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.words import plural
from tests.loading.test_shard_reader import flip_bit
from tests.pages import Page
from tests.samples import jpeg, set_paths, smooth_picture, write
from tests.tools.test_train_command import SMALL
from tools.train import main
from train.checkpoint import Run, load, load_run, save
from train.config import Config
from train.evaluate import Evaluation, evaluate, open_split
from train.logging import METRICS, read_lines
from train.metrics import iou
from train.report import MAX_EPOCHS, NOT_KNOWN, decimals, interval, split_cells, write_report
from train.scoring import NETWORK, TRIVIAL, Summary

NAME = "<b>&\"'run"
CPU = torch.device("cpu")


def trained(shards: Path, out: Path, *flags: str) -> Path:
    result = CliRunner().invoke(main, ["--shards", str(shards), "--out", str(out), *SMALL, *flags])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / NAME
    return trained(packed, out, "--epochs", "3", "--log-every", "2", "--seed", "7")


@pytest.fixture(scope="module")
def content(run: Path, packed: Path) -> str:
    return write_report(run, packed, CPU).read_text()


@pytest.fixture(scope="module")
def page(content: str) -> Page:
    return Page(content)


@pytest.fixture(scope="module")
def evaluation(run: Path, packed: Path) -> Evaluation:
    opened_run = load_run(run, "best", CPU, packed)
    return evaluate(opened_run, "val", open_split(opened_run, "val", CPU))


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scores are not the matter: they take the longest."""

    def refuse(*_: object, **__: object) -> None:
        raise InputError("not here")

    monkeypatch.setattr(train.report, "open_split", refuse)


def report_of(run: Path, shards: Path) -> Page:
    return Page(write_report(run, shards, CPU).read_text())


def test_the_file_is_in_the_run_and_the_same_each_time(run: Path, packed: Path, content: str) -> None:
    path = write_report(run, packed, CPU)
    assert path == run / "report.html"
    assert path.read_text() == content
    assert not list(run.glob(".*"))


def test_the_name_is_text_wherever_it_stands(content: str, page: Page) -> None:
    assert page.texts["h1"] == NAME
    assert page.texts["title"].startswith(f"{NAME}: report of fgbg-train")
    assert "<b>" not in content


def test_nothing_is_asked_of_a_network(content: str, page: Page) -> None:
    assert not re.search(r"https?:", content)
    assert not re.search(r"url\(|@import|@font-face", content)
    assert "script" not in page.texts
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object", "base"}
    for tag, name, value in page.attributes:
        assert name not in ("srcset", "action", "data")
        assert name not in ("href", "xlink:href") or value.startswith("#")
        assert name != "style" or tag in ("path", "use", "text")  # of the charts
        assert name != "src" or value.startswith("data:image/jpeg;base64,")
        assert not name.startswith("on")


def test_settings_are_all_there_and_those_unlike_the_default_marked(run: Path, packed: Path, page: Page) -> None:
    settings = load(run / "best.pt").state["settings"]
    rows = page.table(f"{len(settings)} settings, ")
    assert [name.replace("-", "_") for name in list(rows)[1:]] == list(settings)
    marked = {name for name, (value, _) in rows.items() if value.endswith("*")}
    assert {"epochs", "batch-size", "size", "model", "seed"} <= marked
    for name, value in settings.items():
        shown = rows[name.replace("_", "-")][0]
        assert (value != getattr(Config("", "").on_device("cpu"), name)) == shown.endswith("*")
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(shown.rstrip("*")) == value
    assert (rows["seed"], rows["lr"], rows["mask-weight"]) == (["7*", "0"], ["0.03", "0.03"], ["6.0", "6.0"])
    assert rows["model"][1] == "unet-24x2"


def test_data_and_split_cells(packed: Path, page: Page) -> None:
    slowly = Counter[tuple[str, str]]()
    for bg in range(10):
        for fg in range(10):
            slowly[group(BACKGROUND_SALT, bg), group(FOREGROUND_SALT, fg)] += 1
    rows = page.table("Sets by the split")
    assert rows[""] == ["train", "val", "test"]
    for of_bg in rows[""]:
        assert rows[of_bg] == [str(slowly[of_bg, of_fg]) for of_fg in rows[""]]
    facts = page.table("What was packed")
    stored = sum(path.stat().st_size for path in packed.glob("sets-*.tar"))
    assert facts["bytes"] == [f"{stored:,} in 7 shards, {stored // 100:,} a set"]
    assert (facts["sets"], facts["backgrounds"], facts["codec"]) == (["100"], ["10"], ["jpeg"])
    assert facts["sizes, pixels"] == ["bg 48 x 48; depth 48 x 48; fg_bg 48 x 48; mask 48 x 48"]


def test_the_scores_are_those_of_the_evaluation(page: Page, evaluation: Evaluation) -> None:
    [mask] = [rows for caption, rows in page.tables.items() if caption.startswith("Mask, at 0.5")]
    [depth] = [rows for caption, rows in page.tables.items() if caption.startswith("Depth, nearness")]
    in_mask = ("mask_iou", "mask_dice", "boundary_f_1px", "boundary_f_2px")
    in_depth = ("ssim", "rmse", "mae", "abs_rel", "delta_1.25")
    expected_mask, expected_depth = [], []
    for cell in evaluation.cells.values():
        title = [f"{cell.title}: {plural(cell.sets, 'set')} on {plural(cell.backgrounds, 'background')}"]
        expected_mask.append(title)
        expected_depth.append(title)
        for label, who in (("network", NETWORK), (f"|fg_bg - bg| > {evaluation.threshold}", TRIVIAL)):
            of = cell.scores[who]
            worst = f"{of['mask_dice']['p5']:.3f}"
            expected_mask.append([label, *(slowly_shown(of[name]) for name in in_mask), worst])
        for label, who in (("network", NETWORK), ("mean depth", TRIVIAL)):
            for suffix, prefix in (("", "depth"), (", fitted", "fitted")):
                values = [slowly_shown(cell.scores[who][f"{prefix}_{name}"]) for name in in_depth]
                expected_depth.append([f"{label}{suffix}", *values])
    assert mask[1:] == expected_mask
    assert depth[1:] == expected_depth
    assert len(mask) == 1 + 4 * 3


def slowly_shown(score: dict[str, float | int | None]) -> str:
    text = f"{score['mean']:.3f}"
    if score["low"] is not None:
        text += " " + "\N{EN DASH}".join(re.sub("^0", "", f"{score[end]:.3f}") for end in ("low", "high"))
    return text


def test_means_and_intervals_of_any_size_and_none() -> None:
    dash = "\N{EN DASH}"
    scores: list[Summary] = [
        {"mean": 0.5, "low": -0.25, "high": 10.5},
        {"mean": 0.5, "low": 0.25, "high": 0.75},
        {"mean": 0.5, "low": None, "high": None},
        {"mean": None, "low": None, "high": None},
    ]
    assert [interval(score) for score in scores] == [f"-0.250{dash}10.500", f".250{dash}.750", "", ""]
    assert [decimals(score["mean"]) for score in scores] == ["0.500", "0.500", "0.500", dash]


def test_the_ceiling_of_the_labels(page: Page, evaluation: Evaluation) -> None:
    of = evaluation.ceiling["90"]
    expected = f"quality 90: mask IoU {of['mask_iou']['mean']:.3f}, depth SSIM {of['depth_ssim']['mean']:.3f}."
    assert expected in " ".join(page.texts["p"].split())


def test_the_result_comes_first(page: Page, evaluation: Evaluation) -> None:
    scores = evaluation.cells["new_new"].scores
    step = load(evaluation.run.checkpoint).state["step"]
    assert " ".join(page.texts["header"].split()) == (
        f"{NAME} "
        f"Mask IoU {scores[NETWORK]['mask_iou']['mean']:.3f} "
        f"baseline {scores[TRIVIAL]['mask_iou']['mean']:.3f} (|fg_bg - bg| > {evaluation.threshold}) "
        f"Depth SSIM {scores[NETWORK]['depth_ssim']['mean']:.3f} "
        f"baseline {scores[TRIVIAL]['depth_ssim']['mean']:.3f} (mean depth) "
        "Means with their 95 % intervals, in validation, new background, new foreground. "
        "1 set on 1 background and 1 foreground: scores hold for this background alone. "
        f"Trained to step 12, epoch 3, 192 sets; scored: best.pt of step {step}. "
        "Pictures Curves Scores Throughput Data Settings Versions"
    )


def test_results_come_before_what_they_are_of(content: str, page: Page) -> None:
    headings = re.findall("<h2>(.*)</h2>", content)
    assert headings == [
        "Worst and best validation sets",
        "Curves",
        "Scores, cell by cell",
        "Throughput and stalls",
        "Data",
        "Settings",
        "Versions",
    ]
    assert attributes_of(page, "a", "href") == [f"#{name}" for name in attributes_of(page, "section", "id")]


def test_at_most_so_many_sets_of_a_cell_are_scored(
    run: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.report, "SETS_PER_CELL", 3)
    seen = list[int]()

    def counted(batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            seen.append(len(batch.bg))
            yield batch

    copy = shutil.copytree(run, tmp_path / "run")
    found = Page(write_report(copy, packed, CPU, counted).read_text())
    assert sum(seen) == 1 + 3 + 3 + 3
    assert "seen background, seen foreground: 3 of 64 sets on " in found.texts["table"]


def test_pictures_are_of_the_worst_and_the_best(run: Path, packed: Path, page: Page) -> None:
    """Of the one set in the headline, and, without such, of all."""
    [caption] = re.findall(r"fg_\d+_bg_\d+_\d+: mask IoU \d\.\d+", page.texts["figcaption"])
    network = load_run(run, "best", CPU, packed).network
    [batch] = (loader := Loader(packed, "val", batch_size=1, size=32))
    with torch.no_grad():
        found = iou(network(batch.bg, batch.fg_bg)[0] > 0, batch.mask).item()
    assert caption == f"{loader.key(int(batch.index))}: mask IoU {found:.3f}"
    assert page.texts["h3"] == "Worst"
    tiles = dict(zip(attributes_of(page, "img", "alt"), attributes_of(page, "img", "src"), strict=True))
    titles = ("bg", "fg_bg", "mask", "predicted mask", "depth", "predicted depth")
    key = caption.partition(":")[0]
    assert list(tiles) == [f"{title} of {key}" for title in titles]
    for title, truth in (("bg", batch.bg), ("fg_bg", batch.fg_bg), ("mask", batch.mask), ("depth", batch.depth)):
        picture = Image.open(io.BytesIO(base64.b64decode(tiles[f"{title} of {key}"].partition(",")[2])))
        assert truth is not None
        assert np.abs(np.asarray(picture, np.int16) - truth[0, 0].numpy()).mean() < 4
    assert set(attributes_of(page, "img", "width")) == set(attributes_of(page, "img", "height")) == {str(32)}


def attributes_of(page: Page, tag: str, name: str) -> list[str]:
    return [value for found_tag, found_name, value in page.attributes if (found_tag, found_name) == (tag, name)]


def test_speed_and_stalls_of_epochs_are_those_of_their_lines(run: Path, page: Page) -> None:
    rows = page.table("Epochs: ")
    lines = read_lines(run / METRICS)
    before, sums = 0, {epoch: [0, 0.0, 0.0] for epoch in (1, 2, 3)}
    for line in lines:
        if line["kind"] == "train":
            sets = line["sets_seen"] - before
            before = line["sets_seen"]
            of = sums[line["epoch"]]
            of[0] += sets
            of[1] += sets / line["sets_per_sec"]
            of[2] += sets / line["sets_per_sec"] * line["stall_share"]
    sums_later = [sums[2][place] + sums[3][place] for place in range(3)]
    for title, (sets, sec, waited_sec) in [("all later ones", sums_later), *((f"epoch {n}", sums[n]) for n in sums)]:
        assert rows[title][:3] == [f"{sets:,}", f"{sets / sec:,.0f}", f"{waited_sec / sec:.1%}"]
    scores = {line["epoch"]: line for line in lines if line["kind"] == "val"}
    for epoch, line in scores.items():
        assert rows[f"epoch {epoch}"][3:] == [f"{line['mask_iou']:.3f}", f"{line['depth_ssim']:.3f}"]
    assert [rows[f"epoch {epoch}"][0] for epoch in (1, 2, 3)] == ["64", "64", "64"]


@pytest.mark.usefixtures("unscored")
def test_many_epochs_are_thinned_and_say_so(run: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.pt", tmp_path)
    line = {"kind": "train", "sets_per_sec": 8.0, "stall_share": 0.5}
    lines = [{**line, "step": epoch, "epoch": epoch, "sets_seen": 10 * epoch} for epoch in range(1, 101)]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = report_of(tmp_path, packed)
    [(caption, rows)] = [item for item in found.tables.items() if item[0].startswith("Epochs: ")]
    assert caption.endswith("every 4. of 100")
    assert len(rows) <= 1 + 2 + MAX_EPOCHS
    assert [row[0] for row in rows[:4]] == ["", "epoch 1", "all later ones", "epoch 5"]
    assert rows[2][1:4] == ["990", "8", "50.0%"]


@pytest.mark.usefixtures("unscored")
def test_curves_that_were_logged_are_drawn(run: Path, packed: Path, page: Page, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    lines = [{name: line[name] for name in line if name != "grad_norm"} for line in read_lines(run / METRICS)]
    (copy / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = report_of(copy, packed).texts["svg"]
    for title in ("mask loss", "depth loss", "mask IoU in", "depth SSIM in", "learning rate", "sets/s", "waited for"):
        assert title in page.texts["svg"]
        assert title in drawn
    assert "gradient norm" in page.texts["svg"]
    assert "gradient norm" not in drawn  # as older runs have it


def test_versions(page: Page) -> None:
    rows = page.table("Of the machine")
    assert rows["torch"] == [torch.__version__]
    assert rows["numpy"] == [np.__version__]
    assert "CPU" in rows["device"][0]
    assert re.match(r"nvidia-dali-cuda1[23]0 \d+\.\d+", rows["DALI"][0])


def test_a_run_of_the_peer_protocol_is_scored_by_it_and_called_leaking(
    run: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "peer_protocol", property(lambda _: True))
    found = report_of(shutil.copytree(run, tmp_path / "run"), packed)
    sets = Loader(packed, "peer-val", batch_size=1, size=32).sets
    assert f"validation, LEAKING: random split by set.\n{sets} sets on" in found.texts["header"]
    assert "LEAKING: sets were parted at random" in found.texts["p"]


def test_a_run_without_a_report_needs_no_jinja2() -> None:
    """The command itself is loaded with all that it needs but for a report."""
    subprocess.run([sys.executable, "-c", "import sys, tools.train; sys.exit('jinja2' in sys.modules)"], check=True)


# What is missing is a sentence.


def test_an_interrupted_run_without_validation_and_numbers(run: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.pt", tmp_path)
    found = report_of(tmp_path, packed)
    assert "The last checkpoint was scored, for want of the best: the run has had no validation." in found.texts["p"]
    assert "Scored: last.pt of step " in found.texts["header"]
    assert found.texts["p"].count("No numbers were logged.") == 2
    assert "Mask IoU" in found.texts["header"]


@pytest.mark.usefixtures("unscored")
def test_one_line_of_numbers(run: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.pt", tmp_path)
    (tmp_path / METRICS).write_text((run / METRICS).read_text().split("\n")[0] + "\n")
    found = report_of(tmp_path, packed)
    assert "The run has had no validation." in found.texts["p"]
    assert list(found.table("Epochs: ")) == ["", "epoch 1"]


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize("broken", [b"\xff\xfe\n", b"{\n", b"[1]\n"])
def test_damaged_numbers_and_a_damaged_best_checkpoint(run: Path, packed: Path, tmp_path: Path, broken: bytes) -> None:
    shutil.copy(run / "last.pt", tmp_path)
    (tmp_path / METRICS).write_bytes(broken)
    (tmp_path / "best.pt").write_bytes(b"PK")
    found = report_of(tmp_path, packed)
    assert "metrics.jsonl: left out 1 damaged line, the first line 1: " in found.texts["p"]
    assert "for want of the best: " in found.texts["p"]
    assert "not a whole checkpoint" in found.texts["p"]


@pytest.mark.usefixtures("unscored")
def test_a_name_that_is_no_text(run: Path, packed: Path, tmp_path: Path) -> None:
    for name, shown in ((b"run\xff", "run?"), ("\u202erun\x1b".encode(), r"\u202erun\x1b")):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        shutil.copy(run / "best.pt", folder)
        assert report_of(folder, packed).texts["h1"] == shown


def test_no_checkpoint_is_an_error_and_writes_nothing(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint in it; expected a run of fgbg-train"):
        write_report(tmp_path, packed, CPU)
    assert not list(tmp_path.iterdir())


def test_shards_that_are_gone(run: Path, tmp_path: Path) -> None:
    found = report_of(shutil.copytree(run, tmp_path / "run"), tmp_path / "gone")
    assert "Nothing was scored: no shards in " in found.texts["header"]
    assert "Nothing can be said of the data: no shards in " in found.texts["p"]
    assert "mask loss" in found.texts["svg"]


def test_other_shards_than_those_of_training(run: Path, source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "others", PackOptions(sets_per_shard=50, workers=1))
    found = report_of(shutil.copytree(run, tmp_path / "run"), tmp_path / "others")
    assert "Trained on other shards than these" in found.texts["p"]


def test_without_depth(bare: Path, run: Path, tmp_path: Path) -> None:
    alone = report_of(trained(bare, tmp_path / "alone", "--no-depth"), bare)
    assert "Depth is not scored: the network has none." in alone.texts["p"]
    assert "Depth SSIM" not in alone.texts["header"]
    assert "depth loss" not in alone.texts["svg"]
    assert alone.table("What was packed")["depth"] == ["none"]
    other = report_of(shutil.copytree(run, tmp_path / "run"), bare)
    assert "Depth is not scored: the sets have none." in other.texts["p"]


def test_without_validation_sets(source: Path, tmp_path: Path) -> None:
    for bg in range(10):
        if group(BACKGROUND_SALT, bg) == "train":
            for fg in range(10):
                number = bg * 10 + fg
                if group(FOREGROUND_SALT, fg) == "train" and fg < 8:
                    for path in (f"bg/bg_{bg:03}.jpg", *set_paths(bg, fg, number)):
                        write(tmp_path / "source" / path, (source / path).read_bytes())
    pack(tmp_path / "source", tmp_path / "shards", PackOptions(workers=1))
    found = report_of(trained(tmp_path / "shards", tmp_path / "run"), tmp_path / "shards")
    assert "No result: no validation set has a new background, new foreground" in found.texts["header"]
    assert "these are of all that were scored" in found.texts["p"]
    assert found.texts["h3"] == "WorstBest"
    shown = [float(value) for value in re.findall(r"mask IoU (\d\.\d+)", found.texts["figcaption"])]
    assert shown[:8] == sorted(shown[:8])
    assert shown[8:] == sorted(shown[8:], reverse=True)
    assert (len(shown), min(shown[8:]) >= max(shown[:8])) == (12, True)
    assert "No set to be scored: new background, new foreground; " in found.texts["p"]


def test_no_set_that_can_be_scored(run: Path, tmp_path: Path) -> None:
    bg, fg = (next(n for n in range(99) if group(salt, n) == "test") for salt in (BACKGROUND_SALT, FOREGROUND_SALT))
    write(tmp_path / f"source/bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
    for part, path in enumerate(set_paths(bg, fg, 0)):
        write(tmp_path / "source" / path, jpeg(smooth_picture(part, channels=1 if part else 3)))
    pack(tmp_path / "source", tmp_path / "shards", PackOptions(workers=1, accept_suspicious=True))
    found = report_of(shutil.copytree(run, tmp_path / "run"), tmp_path / "shards")
    assert "Nothing was scored: no set of " in found.texts["header"]
    assert "Warning of the packing: the masks cannot be told" in found.texts["header"]
    assert found.table("Sets by the split")["test"] == ["0", "0", "1"]


def test_damaged_sets_are_told(run: Path, packed: Path, tmp_path: Path) -> None:
    copy, shards = shutil.copytree(run, tmp_path / "run"), shutil.copytree(packed, tmp_path / "shards")
    for shard in sorted(shards.glob("sets-*.tar")):
        flip_bit(shard, 512 + 30)
    lines = read_lines(run / METRICS)
    next(line for line in lines if line["kind"] == "train")["sets_damaged"] = 3
    (copy / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = report_of(copy, shards)
    assert "Sets left out of training as damaged: 3." in found.texts["p"]
    assert re.search("Sets left out of the scores as damaged: [1-7], such as fg_", found.texts["header"])


def test_a_network_of_no_numbers(run: Path, packed: Path, tmp_path: Path) -> None:
    checkpoint = load(run / "best.pt")
    assert checkpoint.ema
    name = next(name for name in checkpoint.ema if name.startswith("mask_head"))
    checkpoint.ema[name].fill_(3e38)
    save(tmp_path / "best.pt", checkpoint)
    found = report_of(tmp_path, packed)
    assert "the network predicts values that are no numbers" in found.texts["header"]


def test_foregrounds_that_are_not_known_are_counted_by_themselves(packed: Path) -> None:
    index = np.array(load_index(packed, Manifest.load(packed)))
    index["fg"][:5] = -1
    counts = split_cells(index)
    assert sum(count for (_, fg), count in counts.items() if fg == NOT_KNOWN) == 5
    assert sum(counts.values()) == 100
