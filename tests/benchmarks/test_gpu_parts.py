import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.baseline_results import gmac
from benchmarks.gpu import commands, pictures, speed
from benchmarks.gpu.commands import differences, end_to_end_steps, endless, epoch_sec, run_tests
from benchmarks.gpu.pictures import SOAKED, SOAKED_SMALL, Soak, compare, recommended, sample_files
from benchmarks.gpu.plan import DATA, PARTS, in_order
from benchmarks.gpu.process import Context
from benchmarks.gpu.record import Findings, load_record
from benchmarks.gpu.speed import Case, counted, timed_steps
from benchmarks.harness import Loaded
from benchmarks.processes import Exit, run_command
from pipeline.errors import InputError
from pipeline.format.manifest import Manifest
from pipeline.loading.decode import DecodeOptions, Decoder
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from train.logging import Log

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def planes32(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets of the fixture `packed` as planes of 32 x 32 pixels; read only."""
    folder = tmp_path_factory.mktemp("gpu") / "planes"
    pack(source, folder, PackOptions(workers=1, codec="planes", size=32))
    return folder


@pytest.fixture
def context(packed: Path, planes32: Path, tmp_path: Path) -> Context:
    """The small forms', on 100 sets."""
    (tmp_path / "part").mkdir()
    given = {"jpeg": str(packed), "planes": str(planes32)}
    return Context(str(tmp_path), "cpu", 400, given, [], [120, 2], str(tmp_path / "part"))


def found_by(name: str, context: Context) -> dict[str, Any]:
    """What a part finds, in this process."""
    [part] = in_order([name], DATA, {})
    found = Findings(Path(context.root), name, context.circumstances(part))
    getattr(import_module(part.module), name)(context, found)
    found.end()
    return load_record(Path(context.root), name) or {}


def test_every_part_has_a_function_of_its_name() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(callable(getattr(import_module(part.module), part.name)) for part in PARTS)


# --- pictures


def test_the_cpu_agrees_with_pillow_and_with_itself(context: Context) -> None:
    found = found_by("picture", context)
    assert (found["status"], list(found["rows"])) == ("done", list(pictures.FIRST))
    found = found_by("parity", context)
    assert (found["status"], list(found["rows"])) == ("done", [*sample_files(), "100 sets of jpeg, load 0"])
    assert found["rows"]["100 sets of jpeg, load 0"]["figures"] == {"levels": 0}
    assert "GPU against CPU: skipped: no GPU" in found["notes"]
    assert any(note.startswith("planes as the CPU's of JPEG: skipped") for note in found["notes"])


def test_planes_that_were_packed_here_are_compared_bit_for_bit(
    context: Context, packed: Path, planes32: Path, planes: Path
) -> None:
    data = Path(context.root, "data")
    data.mkdir()
    (data / "jpeg").symlink_to(packed)
    (data / "planes").symlink_to(planes32)
    assert found_by("parity", replace(context, given={}))["rows"]["100 sets of planes"]["figures"] == {"levels": 0}
    first, _ = pictures.picked_sets(context, "jpeg", "cpu", 0.0, None)
    mask = first.mask.clone()
    mask[7, 0, 3, 3] ^= 4
    assert pictures.apart(first, replace(first, mask=mask)) == 4


class Spoiled(Decoder):
    """A decoder whose second picture is another by some levels."""

    by = 0

    def decode(self, batches: Any) -> Any:
        for batch in super().decode(batches):
            batch["x"][1, 0, :2] = (batch["x"][1, 0, :2].int() + self.by).clamp(0, 255).to(torch.uint8)
            yield batch


@pytest.mark.parametrize(("by", "wrong"), [(0, False), (3, False), (-30, True)])
def test_devices_that_disagree_are_told_of(by: int, wrong: bool) -> None:
    options = DecodeOptions(pictures.COPIES, 32, "cpu", 2, 1, 0.0)
    other = Spoiled({"x": None}, options)
    other.by = by
    decoders = {"CPU": Decoder({"x": None}, options), "GPU": other}
    found, lines = compare(decoders, sample_files()["colour 4:2:0"], 32)
    assert found["GPU"]["max"] == abs(by)
    assert lines == (["GPU and the CPU are 30 levels apart, more than 3"] if wrong else [])


def test_a_picture_that_does_not_decode_is_told_of_and_the_next_one_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "COPIES", 1)  # of a larger batch with such a picture DALI 2.4.0 may crash: SIGSEGV
    decoders = {"CPU": Decoder({"x": None}, DecodeOptions(1, 32, "cpu", 2, 1, 0.0))}
    monkeypatch.setattr(pictures, "decode_gray", lambda _: np.zeros((32, 32), np.uint8))
    found, [line] = compare(decoders, sample_files()["gray"][:300], 32)
    assert (found, line.startswith("CPU cannot decode it: ")) == ({}, True)
    _, [line] = compare(decoders, sample_files()["gray"], 32)
    assert "CPU and Pillow are" in line


def test_samples_are_what_they_are_called() -> None:
    files = sample_files()
    assert files == sample_files()
    # Start of frame: SOF0 baseline, SOF2 progressive; of the first component its sampling factors.
    for name, content in files.items():
        if "PNG" in name:
            assert content[24] == (16 if "16" in name else 8)
        else:
            start = content.find(b"\xff\xc2" if "progressive" in name else b"\xff\xc0")
            assert start > 0
            colours, sampling = content[start + 9], content[start + 11]
            assert colours == (1 if "gray" in name else 3)
            of = 0x22 if "EXIF" in name or "restart" in name else 0x11
            assert sampling == {"4:2:0": 0x22, "4:2:2": 0x21}.get(name[-5:], of)


def test_the_small_soak_is_never_wrong(context: Context) -> None:
    found = found_by("soak", context)
    assert (found["status"], found["figures"]) == ("done", {"recommended": 0.0})
    figures, plan = found["rows"]["hw_decoder_load 0"]["figures"], SOAKED_SMALL
    assert (figures["batches"], figures["largest"], figures["wrong"]) == (plan.batches, 0, 0)
    assert figures["pictures"] == plan.batches * plan.batch * 3


def test_the_soak_sees_another_picture_and_a_late_one(context: Context) -> None:
    trial, places = Soak(context, SOAKED_SMALL), torch.tensor([5, 9, 2])
    batch = {part: pixels[places].clone() for part, pixels in trial.pixels.items()}
    assert trial.differences(batch, places).tolist() == [0, 0]
    batch["mask"][0, 0, 0, 0] ^= 2  # rounded otherwise
    assert trial.differences(batch, places).tolist() == [2, 0]
    batch["fg_bg"][1] = trial.pixels["fg_bg"][7]  # of another set
    batch["depth"][2, 0, 16:] = 0  # half there
    largest, wrong = trial.differences(batch, places).tolist()
    assert wrong == 2
    assert largest > pictures.TOLERANCE


def test_the_engine_is_recommended_where_it_was_right_under_every_load() -> None:
    def rows(*soaked: tuple[int, int]) -> dict[str, Any]:
        return {str(n): {"figures": {"batches": batches, "wrong": wrong}} for n, (batches, wrong) in enumerate(soaked)}

    assert recommended(rows((2000, 0), (300, 0), (2000, 0)), SOAKED) == 0.65
    assert recommended(rows((2000, 0), (2000, 0), (2000, 1)), SOAKED) == 0  # it was lucky at 0.65
    assert recommended(rows((2000, 0), (2000, 0), (150, 0)), SOAKED) == 0  # too few
    assert recommended(rows((2000, 0), (2000, 0)), SOAKED) == 0  # not all yet
    assert recommended(rows((12, 0)), SOAKED_SMALL) == 0


@pytest.mark.parametrize(("wrong", "status"), [(0, "done"), (3, "failed")])
def test_a_default_that_is_wrong_is_a_failure(
    context: Context, monkeypatch: pytest.MonkeyPatch, wrong: int, status: str
) -> None:
    figures = dict.fromkeys(("batches", "pictures", "largest", "wrong", "wrong_batches", "rate"), 12) | {"wrong": wrong}
    monkeypatch.setattr(Soak, "under", lambda *_: figures)
    assert found_by("soak", context)["status"] == status


@pytest.mark.parametrize(("fixed", "major", "load"), [(0.65, 9, 0.65), (None, 9, 0.0), (None, 8, 0.65)])
def test_the_default_of_hopper_is_cuda_alone(
    context: Context, monkeypatch: pytest.MonkeyPatch, fixed: float | None, major: int, load: float
) -> None:
    monkeypatch.setattr(DecodeOptions, "hw_decoder_load", fixed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    monkeypatch.setattr(Context, "device", CPU)
    assert pictures.default_load(replace(context, flag="gpu")) == load


# --- speed


def test_the_small_form_of_stalls_is_measured_on_every_source(context: Context) -> None:
    found = found_by("stalls", context)
    assert (found["status"], len(found["rows"])) == ("done", 1 + 3 * 2)
    for name, row in found["rows"].items():
        if name != "roofline":
            epochs, figures = 1 if name.endswith("1") else 2, row["figures"]
            assert (figures["sets"], figures["steps"], figures["busy_pct"]) == (16 * epochs, epochs, None)
            assert figures["end_to_end_sec"] > 0 < figures["alone"]
            assert len(row["cells"]) == len(found["columns"])


def test_the_devices_clock_counts_what_lies_within_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    def loading() -> Iterator[Any]:
        nonlocal now
        for _ in range(3):
            now += 1  # a wait for data
            yield SimpleNamespace(bg=[0])

    def train_step(*_: object) -> None:
        nonlocal now
        now += 4

    monkeypatch.setattr(torch.cuda, "Event", Event)
    learner: Any = SimpleNamespace(device=torch.device("cuda"), train_step=train_step)
    assert timed_steps(learner, loading())[1] == pytest.approx(80.0)
    learner.device = CPU
    assert timed_steps(learner, loading())[1] is None


def test_the_small_sweep_measures_sources_and_goes_along_its_axes(context: Context) -> None:
    found = found_by("decode", context)
    names = [name.replace("--prefetch 2 ", "") for name in found["rows"]]
    assert names[:3] == [f"{source} --threads 2 --batch-size 16" for source in speed.SOURCES]
    assert names[3] == "JPEG --threads 1 --batch-size 16"
    assert len(names) in (6, 7)  # one of JPEG lies on both axes, one of planes was the first if its batch is the best
    assert all(row["figures"]["sets_per_sec"]["median"] > 0 for row in found["rows"].values())
    assert set(found["figures"]) == {"jpeg", "planes"}


def test_arithmetic_and_traffic_are_counted() -> None:
    convolution, inputs = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.rand(2, 3, 16, 16)
    forward = 2 * (2 * 16 * 16) * (8 * 3 * 3 * 3)
    assert counted(lambda: convolution(inputs))[0] == forward
    assert counted(lambda: convolution(inputs).sum().backward())[0] == 2 * forward  # nothing asks for the inputs'
    a, b = torch.rand(1000), torch.rand(1000)
    assert counted(lambda: a + b)[1] == 12_000
    assert counted(lambda: a.add_(b))[1] == 12_000
    assert counted(lambda: a.view(10, 100).t())[1] == 0
    assert counted(lambda: torch.rand(1).expand(1000) + b)[1] == 4 + 4 + 8000  # made, read, read and written
    flops, _ = speed.shares_of("unet-16", 64, CPU)
    assert 2.9 < flops / (2e9 * gmac("unet-16", True, 64)) < 3.1  # no gradient at the pictures, but SSIM and its own


def test_a_case_is_measured_without_data_and_without_a_decoder_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    context = Context(str(tmp_path), "cpu", 400, {}, ["unet-4,2,off"], [300, 3], str(tmp_path))
    found = found_by("throughput", context)
    assert (found["status"], list(found["rows"]), found["data"]) == ("done", ["roofline", "unet-4, batch 2, off"], {})
    figures, roofline = (found["rows"][name]["figures"] for name in ("unet-4, batch 2, off", "roofline"))
    flops, moved = speed.shares_of("unet-4", 32, CPU)
    rate = figures["sets_per_sec"]["median"]
    assert figures["shares"] == pytest.approx([rate * flops / roofline["float32"], rate * moved / roofline["copy"]])
    monkeypatch.setattr(speed, "rated", lambda *_: pytest.fail("measured again"))
    assert found_by("throughput", context)["rows"] == found["rows"]


def test_a_case_that_fails_is_told_and_tried_again(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([torch.OutOfMemoryError("of 5 GiB"), RuntimeError("no ptxas\nin all of this"), ValueError()])

    def rated(_: Context, case: Case, __: object) -> Any:
        if case.model == "unet-8":
            return {"tf32_share": 0.25}, ["1"], []
        raise next(errors)

    monkeypatch.setattr(speed, "rated", rated)
    cases = replace(context, cases=["unet-4,1,off", "unet-4,2,off", "unet-4,3,default", "unet-8,3,off"])
    found = found_by("throughput", cases)
    assert {name: (row["cells"], row["failures"]) for name, row in list(found["rows"].items())[1:]} == {
        "unet-4, batch 1, off": (["out of memory"], []),
        "unet-4, batch 2, off": (["-"], ["RuntimeError: no ptxas"]),
        "unet-4, batch 3, default": (["-"], ["ValueError: no message"]),
        "unet-8, batch 3, off": (["1"], []),
    }
    assert found["status"] == "failed"
    monkeypatch.setattr(speed, "rated", lambda *_: ({}, ["2"], []))
    cells = [row["cells"] for row in found_by("throughput", cases)["rows"].values()]
    assert sorted(cells[1:]) == [["1"], ["2"], ["2"], ["out of memory"]]


def test_what_there_is_no_time_for_is_named_and_comes_at_the_next_start(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "rated", lambda *_: ({}, ["1"], []))
    cases = replace(context, cases=["unet-4,1,off", "unet-4,2,off"])
    found = found_by("throughput", replace(cases, ends_sec=0.0))
    assert (found["status"], list(found["rows"])) == ("partial", ["roofline"])
    late = "unet-4, batch 1, off; unet-4, batch 2, off"
    assert f"no time was left for {late}: the same command goes on" in found["notes"]
    assert found_by("throughput", cases)["status"] == "done"


# --- the original


def epochs_of(*sizes: int) -> list[Loaded]:
    """An epoch of the original's loader, of batches of these sizes."""
    parts = ("bg", "fg_bg", "mask", "depth")
    return [Loaded(sets, list, {p: torch.rand(sets, 1, 32, 32).expand(-1, 3, -1, -1) for p in parts}) for sets in sizes]


def test_the_originals_loop_is_measured(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "seed", lambda *_: epochs_of(2, 2, 1))
    found = found_by("original", context)
    [row] = found["rows"].values()
    assert 0 <= row["figures"]["stall_share"] < 1
    assert row["figures"]["sets_per_sec"]["median"] > 0
    assert "skipped: no GPU" in found["notes"][0]


def test_only_whole_batches_are_trained_and_none_is_told() -> None:
    batches = endless(epochs_of(4, 4, 3), 4)
    assert [next(batches).sets for _ in range(5)] == [4] * 5
    with pytest.raises(InputError, match="fewer than 8 sets"):
        next(endless(epochs_of(4, 3), 8))


# --- commands


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run, each of which does nothing but is noted."""
    words = list[list[str]]()

    def run(module: str, flags: Sequence[str], places: Sequence[str], note: Path, log: Path) -> float:
        words.append([module, *flags, *places])
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"command": [module, *flags], "seconds": 2.0}))
        return 2.0

    monkeypatch.setattr(commands, "run", run)
    return words


def test_data_are_composed_once_each_kind_by_itself(context: Context, ran: list[list[str]]) -> None:
    bare = replace(context, given={})
    for _ in range(2):
        found = found_by("jpeg", bare)
    assert [words[0] for words in ran] == ["tools.compose", "tools.pack"]
    assert ran[1][-1] == str(bare.folder("jpeg"))
    assert found["rows"]["tools.compose, sets"]["figures"] == {"seconds": 2.0, "sets_per_sec": 200.0}
    found_by("planes", bare)
    assert ran[2][1:] == ["--codec", "planes", "--size", "32", ran[1][1], "--shards", str(bare.folder("planes"))]
    with pytest.raises(InputError, match="made with --sets 400, now it is --sets 500"):
        found_by("jpeg", replace(bare, sets=500))


def losses(*values: float) -> list[dict[str, Any]]:
    return [{"kind": "train", "step": n, "sets_seen": 8 * n, "loss": value} for n, value in enumerate(values, 1)]


def test_losses_of_ranks_are_compared_step_by_step() -> None:
    assert differences(losses(2.0, 1.1), losses(2.0, 1.0)) == pytest.approx((0.0, 0.1))
    for others in (losses(2.0, 1.0), losses(float("nan")), []):
        assert differences(losses(2.0), others) == (float("inf"), float("inf"))


@pytest.mark.parametrize(("shift", "status"), [(0.0, "done"), (0.03, "failed")])
def test_ranks_are_compared_with_one_process(
    context: Context, monkeypatch: pytest.MonkeyPatch, shift: float, status: str
) -> None:
    started = list[list[str]]()

    def run(module: str, flags: list[str], *_: object) -> None:
        started.append([module, *flags])
        out = Path(flags[flags.index("--out") + 1])
        out.mkdir()
        log = Log(out, 0)
        for step in (1, 2, 3):
            loss = 3.0 / step * (1 + shift * (module != "tools.train"))
            log.write("train", step, 1, {"loss": loss, "sets_seen": 32 * step, "sets_per_sec": 9.0})
        log.close()

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    found = found_by("nccl", context)
    assert (found["status"], list(found["rows"])) == (status, ["alone", "torchrun, 2 ranks"])
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m"]
    assert started[1][: len(torchrun) + 1] == [*torchrun, "tools.train"]
    assert "2 ranks over NCCL: skipped: no GPU" in found["notes"]


PROJECT = {
    "setup.cfg": "[tool:pytest]\nmarkers =\n    gpu: x\n",
    "tests/below/test_a.py": (
        "import pytest\n"
        "@pytest.mark.gpu\ndef test_good(): pass\n"
        "@pytest.mark.gpu\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.gpu\n@pytest.mark.skip(reason='no file')\ndef test_left_out(): pass\n"
        "def test_unmarked(): assert False\n"
    ),
    "tests/test_b.py": "raise SystemExit('nothing of it is marked, it is not imported')\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with tests that are marked; they run in one process."""
    monkeypatch.setattr(commands, "find_spec", lambda _: None)
    (tmp_path / "project/tests/below").mkdir(parents=True)
    for name, text in PROJECT.items():
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


def test_tests_that_fail_or_are_skipped_are_named(
    context: Context, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Findings(Path(context.root), "tests", context.circumstances(PARTS[-1]))
    run_tests(context, found, project)
    row = found.rows["pytest -m gpu"]
    assert row["cells"][:2] == ["1", "2"]
    assert row["failures"] == [
        "test_a::test_bad: failure: assert 1 == 2", "test_a::test_left_out: skipped: no file"
    ]  # fmt: skip

    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(InputError, match=r"\(exit code 1; all of its output: .*pytest.log\)$"):
        run_tests(context, found, project)


def test_of_tests_that_are_stopped_those_that_ended_are_kept(
    context: Context, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = "import os, signal\n@pytest.mark.gpu\ndef test_stopped(): os.killpg(0, signal.SIGINT)\n"
    (project / "tests/below/test_a.py").write_text(PROJECT["tests/below/test_a.py"] + stopped)
    monkeypatch.setattr(commands, "run_command", lambda *how: Exit(run_command(*how).code, in_time=False))
    found = Findings(Path(context.root), "tests", context.circumstances(PARTS[-1]))
    run_tests(context, found, project)
    assert found.rows["pytest -m gpu"]["cells"][:2] == ["1", "2"]
    found.end()
    assert (load_record(Path(context.root), "tests") or {})["notes"] == [
        "no time was left for the tests that had not ended: the same command goes on"
    ]


# --- end to end


def test_sets_are_composed_trained_on_and_scored_and_nothing_is_done_twice(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(module: str, flags: Sequence[str], places: Sequence[str], note: Path, log: Path) -> float:
        more = ["--streets", "10", "--cars", "10", "--workers", "1"] if module == "tools.compose" else []
        result = CliRunner().invoke(import_module(module).main, [*flags, *places, *more])
        assert result.exit_code == 0, result.output
        note.write_text(json.dumps({"command": [module, *flags], "seconds": 1.0}))
        return 1.0

    monkeypatch.setattr(commands, "run", in_this_process)
    found, work = found_by("end_to_end", context), Path(context.work)
    assert Manifest.load(work / "shards").sets == 120
    rates = {name: row["figures"].get("sets_per_sec") for name, row in found["rows"].items()}
    assert 0 < rates["from epoch 2 on, validation and checkpoints included"] < rates["from epoch 2 on, while it trains"]
    scores = json.loads((work / "test/evaluation.json").read_text())["cells"]["new_new"]["scores"]
    assert found["rows"]["mask IoU, new foregrounds on new backgrounds"]["figures"] == scores
    assert not any("original" in name for name in found["rows"])

    monkeypatch.setattr(commands, "run", lambda *_: pytest.fail("run again"))
    original = Findings(Path(context.root), "original", context.circumstances(PARTS[-1]))
    theirs = rates["from epoch 2 on, validation and checkpoints included"] / 20
    original.row("its loop", {"sets_per_sec": {"median": theirs}}, [])
    assert found_by("end_to_end", context)["rows"]["against the original's loop"]["cells"] == ["20 x"]
    with pytest.raises(InputError, match="made with --epochs 2, now it is --epochs 3"):
        found_by("end_to_end", replace(context, end_to_end=[120, 3]))


@pytest.mark.parametrize("name", ["", "last.pt", "previous.pt"])
def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(
    context: Context, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, work = list[list[str]](), Path(context.work)

    def run(module: str, flags: Sequence[str], places: Sequence[str], *_: object) -> float:
        started.append([module, *places])
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", run)
    (_, module, flags, _), *_ = end_to_end_steps(context)
    (work / "compose.json").write_text(json.dumps({"command": [module, *flags], "seconds": 1.0}))
    left = work / "run" / (name or "metrics.jsonl")
    left.parent.mkdir()
    left.touch()
    with pytest.raises(KeyboardInterrupt):
        found_by("end_to_end", context)
    assert started[0][0] == "tools.train"
    assert ("--resume" in started[0], left.exists()) == (bool(name), bool(name))


def test_sets_that_the_disk_has_no_room_for_are_refused(context: Context, ran: list[list[str]]) -> None:
    with pytest.raises(InputError, match=r"sets may take 40000000 GB, .* GB free: give a WORK with more room"):
        found_by("end_to_end", replace(context, end_to_end=[10**12, 2]))
    assert not ran


@pytest.mark.parametrize("flag", ["gpu", "cpu"])
def test_every_command_takes_the_flags_that_it_is_given(context: Context, flag: str) -> None:
    for name, module, flags, places in end_to_end_steps(replace(context, flag=flag)):
        if name == "train" and flag == "gpu":
            assert places[-2:] == ["--hw-decoder-load", "0"]
        parsed = import_module(module).main.make_context(name, [*flags, *places])
        assert parsed.params["shards"] == Path(context.work) / "shards"


def test_an_epoch_lasts_from_one_picture_to_the_next(tmp_path: Path) -> None:
    for number, moment in ((10, 100.0), (2, 61.5), (1, 60.0)):
        path = tmp_path / f"epoch_{number:04}.png"
        path.touch()
        os.utime(path, (moment, moment))
    assert epoch_sec(tmp_path) == [1.5, 38.5]
