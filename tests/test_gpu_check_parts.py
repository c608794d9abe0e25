from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.format.depth import depth_table
from pipeline.loading.batch import Batch
from pipeline.loading.decode import Decoder
from pipeline.packing.pack import PackOptions, pack
from tools.benchmark.step import Stall
from tools.benchmark.sweep import Setting
from tools.benchmark.timing import Pass
from tools.gpu_check import agreement, decode, exact, nccl, soak, stalls, tests
from tools.gpu_check.context import Context
from tools.gpu_check.engines import Busy, Watch
from tools.gpu_check.samples import sample_files
from tools.gpu_check.soak import Soak, Verdict, judged, steepest
from train.logging import Log

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def context(source: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The small form's, on 100 sets; planes of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("gpu-check")
    pack(source, folder / "planes", PackOptions(workers=1, codec="planes", size=32))
    (folder / "work").mkdir()
    return Context(folder / "work", packed, folder / "planes", CPU, 600.0, lambda _: None)


def test_the_cpu_agrees_with_pillow_and_with_itself(context: Context) -> None:
    found = agreement.measure(context)
    assert not found.failures
    assert list(found.rows) == list(sample_files())
    assert set(found.figures["bits"].values()) == {0}
    assert "GPU against CPU: skipped: no GPU" in found.notes


class Spoiled(Decoder):
    """A decoder whose second picture is another by some levels."""

    by = 0

    def decode(self, batches: Any) -> Any:
        for pictures in super().decode(batches):
            pictures["x"][1, 0, :2] = (pictures["x"][1, 0, :2].int() + self.by).clamp(0, 255).to(torch.uint8)
            yield pictures


@pytest.mark.parametrize(("by", "wrong"), [(0, False), (3, False), (-30, True)])
def test_devices_that_disagree_are_told_of(context: Context, by: int, wrong: bool) -> None:
    good = agreement.new_decoder(context, "cpu", 0.0)
    other = Spoiled({"x": None}, good._options)
    other.by = by
    differences, lines = agreement.compare({"CPU": good, "GPU": other}, sample_files()["colour 4:2:0"], context.size)
    assert differences["GPU"]["max"] == (0 if by == 0 else pytest.approx(abs(by), abs=0))
    assert bool(lines) == wrong
    if wrong:
        assert lines == ["GPU and the CPU are 30 levels apart, more than 3"]


def test_a_picture_that_does_not_decode_is_told_of(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = agreement.new_decoder(context, "cpu", 0.0)
    files = sample_files()
    monkeypatch.setattr(agreement, "by_pillow", lambda *_: np.zeros((context.size,) * 2, int))
    differences, lines = agreement.compare({"CPU": decoder}, files["gray"][:300], context.size)
    assert (differences, lines) == ({}, ["CPU cannot decode it"])
    _, lines = agreement.compare({"CPU": decoder}, files["gray"], context.size)  # and the next one is judged
    assert "CPU and Pillow are" in lines[0]


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
            assert sampling == {"4:2:0": 0x22, "4:2:2": 0x21}.get(
                name[-5:], 0x22 if "EXIF" in name or "restart" in name else 0x11
            )


def test_batches_are_compared_to_the_last_bit() -> None:
    pictures = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    batch = Batch(pictures, pictures, pictures, pictures, torch.arange(2))
    assert exact.apart([batch], [batch]) == 0
    other = pictures.clone()
    other[1, 0, 3, 3] -= 2
    assert exact.apart([batch], [replace(batch, mask=other)]) == 2
    assert exact.apart([batch], [replace(batch, index=torch.tensor([0, 4]))]) == 3
    assert exact.apart([batch], [replace(batch, index=torch.tensor([0, 4]))], but="index") == 0
    assert exact.apart([batch], [batch.head(1)]) == exact.OTHER
    assert exact.apart([batch], []) == exact.OTHER


def test_the_small_soak_is_never_wrong(context: Context) -> None:
    found = soak.measure(context)
    assert not found.failures
    assert found.figures["recommended"] == 0.0
    verdict = found.figures["0"]
    assert (verdict["batches"], verdict["inexact"], verdict["largest"], verdict["wrong"]) == (soak.CPU.batches, 0, 0, 0)
    assert verdict["pictures"] == soak.CPU.batches * soak.CPU.batch * 3
    assert any("skipped: no GPU" in note for note in found.notes)


def test_the_soak_sees_another_picture_and_a_late_one(context: Context) -> None:
    trial = Soak(context, soak.CPU)
    places = np.array([5, 9, 2])
    pictures = {part: pixels[places].clone() for part, pixels in trial._pixels.items()}
    assert trial.differences(pictures, places).tolist() == [0, 0, 0]
    pictures["mask"][0, 0, 0, 0] ^= 2  # rounded otherwise
    assert trial.differences(pictures, places).tolist() == [1, 2, 0]
    pictures["fg_bg"][1] = trial._pixels["fg_bg"][7]  # of another set
    pictures["depth"][2, 0, 16:] = 0  # half there
    inexact, largest, wrong = trial.differences(pictures, places).tolist()
    assert (inexact, wrong) == (3, 2)
    assert largest > soak.TOLERANCE


def verdict(wrong: int = 0, rate: float = 1.0, batches: int = 2000) -> Verdict:
    return Verdict(batches, 10, wrong, 99 if wrong else 1, wrong, wrong, rate)


def test_the_fastest_load_that_was_never_wrong_is_recommended() -> None:
    found = judged({0.0: verdict(rate=5), 0.65: verdict(rate=7), 1.0: verdict(3, rate=9)}, soak.GPU, True, 0.65)
    assert found.figures["recommended"] == 0.65
    assert not found.failures  # the default is right
    assert "hw_decoder_load 1 is WRONG: do not use it" in found.notes
    found = judged({0.0: verdict(), 0.65: verdict(2), 1.0: verdict(batches=800)}, soak.GPU, True, 0.65)
    assert found.failures == ["hw_decoder_load 0.65: 2 pictures in 2 of 2,000 batches are wrong"]
    assert "hw_decoder_load 1: there was time for 800 of 2,000 batches" in found.notes
    found = judged({0.0: verdict(), 0.65: verdict(2)}, soak.GPU, True, 0.0)
    assert not found.failures  # of what is not used unless it is asked for
    assert "hw_decoder_load 0.65 is WRONG: do not use it" in found.notes
    found = judged({0.0: verdict(1)}, soak.GPU, True, 0.0)
    assert "recommended" not in found.figures


def test_a_steep_table_makes_more_of_what_engines_round() -> None:
    assert steepest(None) == steepest(depth_table("gray", "dark")) == 1
    table = depth_table("magma", "bright").astype(int)
    assert steepest(depth_table("magma", "bright")) == max(abs(table[i + 1] - table[i]) for i in range(255))


def test_the_small_sweep_goes_along_its_axes(context: Context) -> None:
    found = decode.measure(context)
    assert not found.failures
    jpeg, planes = found.figures["jpeg"], found.figures["planes"]
    assert [(one["threads"], one["batch_size"]) for one in jpeg["tried"][:2]] == [(1, 16), (2, 16)]
    assert len(jpeg["tried"]) == 3  # one of them lies on both axes
    assert len(planes["tried"]) == 2
    assert all(one["sets_per_sec"]["median"] > 0 < one["cpu_sec_per_1000_sets"] for one in jpeg["tried"])
    assert jpeg["best"] in [{name: one[name] for name in Setting._fields} for one in jpeg["tried"]]
    assert len(found.rows) == 5


def test_a_descent_goes_on_from_the_best_and_begins_no_axis_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def run(setting: Setting) -> Pass:
        nonlocal now
        now += 1
        return Pass(100, abs(setting.hw_decoder_load - 0.5) + 1 / setting.threads)

    ways = {"hw_decoder_load": (0.0, 0.5, 1.0), "threads": (1, 2, 4), "batch_size": (8, 16)}
    found = decode.descend(run, Setting(1, 2, 8, 0.0), ways, 100.0)
    assert found.best == Setting(4, 2, 8, 0.5)  # of batch sizes that are as fast the cheaper
    assert [s.hw_decoder_load for s in found.tried] == [0.0, 0.5, 1.0, 0.5, 0.5, 0.5]
    assert {len(passes) for passes in found.tried.values()} == {decode.ROUNDS}
    now = 0.0
    found = decode.descend(run, Setting(1, 2, 8, 0.0), ways, 5.0)
    assert (found.best, found.left_out) == (Setting(1, 2, 8, 0.5), ["threads", "batch_size"])


def test_engines_are_read_by_median_and_unknown_where_nothing_is_told() -> None:
    watch = Watch()
    assert watch.read() == Busy(None, None)
    watch.text = "90, 10\n100, 30\n80, [N/A]\nUnable to determine\n"
    assert watch.read() == Busy(90.0, 20.0)
    assert watch.read().describe() == "GPU busy 90 %, its JPEG engine 20 % (nvidia-smi)"
    assert "unknown" in Busy(None, None).describe()


def test_the_small_form_of_stalls_is_measured_on_every_source(context: Context) -> None:
    found = stalls.measure(context)
    whens = ("epoch 1", "from epoch 2")
    names = [f"unet-4, {source}, {when}" for source in ("JPEG", "planes", "resident") for when in whens]
    assert list(found.rows) == names
    assert not found.failures
    for name in names:
        figures = found.figures[name]
        epochs = 1 if name.endswith("1") else 2
        assert (figures["sets"], figures["steps"]) == (16 * epochs, epochs)
        assert figures["busy_pct"] is None
        assert figures["end_to_end_sec"] > 0


def test_goals_are_met_or_missed() -> None:
    quick, slow = Stall(10, 100, 9.95, 10.0, 9.95), Stall(10, 100, 9.0, 10.0, 9.0)
    assert stalls.goals("planes", stalls.Measured([slow, quick], [50.0, 97.5])) == [
        "planes: stalls 0.5 % from epoch 2 on, the goal of 1 % is met",
        "planes: GPU busy 97.5 % from epoch 2 on, the goal of 97 % is met",
    ]
    assert "MISSED" in stalls.goals("resident", stalls.Measured([quick, slow], [None, None]))[0]
    assert "MISSED" not in stalls.goals("JPEG", stalls.Measured([quick, slow], [None, None]))[0]


def test_the_devices_clock_counts_what_lies_within_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = stalls.Clock(on_gpu=True)

    def loading() -> Iterator[Batch]:
        nonlocal now
        for _ in range(3):
            now += 1  # a wait for data
            yield None  # type: ignore[misc]

    def step() -> None:
        nonlocal now
        with clock.step():
            now += 4

    step()  # on the cached batch: not counted
    for _ in range(2):
        for _ in clock.running(loading()):
            step()
        step()
    assert clock.busy_pct() == [pytest.approx(80.0), pytest.approx(80.0)]
    assert stalls.Clock(on_gpu=False).busy_pct() == []


def losses(*values: float) -> list[dict[str, Any]]:
    return [{"step": step, "sets_seen": 8 * step, "loss": value} for step, value in enumerate(values, 1)]


def test_losses_of_ranks_are_compared_step_by_step() -> None:
    assert nccl.differences(losses(2.0, 1.1), losses(2.0, 1.0)) == pytest.approx((0.0, 0.1))
    for others in (losses(2.0, 1.0), losses(float("nan"))):
        assert nccl.differences(losses(2.0), others) == (float("inf"), float("inf"))


@pytest.mark.parametrize(("shift", "wrong"), [(0.0, 0), (0.01, 1)])
def test_ranks_are_compared_with_one_process(
    context: Context, monkeypatch: pytest.MonkeyPatch, shift: float, wrong: int
) -> None:
    commands = list[list[object]]()

    def command(self: Context, *words: object, environment: dict[str, str]) -> str:
        commands.append([*words])
        if "tools.gpu_check.nccl" in words:
            return 'noise\n{"backend": "gloo", "mib": 1, "ms": 0.5, "exact": true}\nmore\n'
        out = words[words.index("--out") + 1]
        assert isinstance(out, Path)
        out.mkdir()
        log = Log(out, 0)
        for step in (1, 2, 3):
            ranked = "torch.distributed.run" in words
            loss = 3.0 / step * (1 + shift * ranked)
            log.write("train", step, 1, {"loss": loss, "sets_seen": 32 * step, "sets_per_sec": 9.0})
        log.close()
        return ""

    monkeypatch.setattr(Context, "command", command)
    found = nccl.measure(context)
    assert len(found.failures) == wrong
    assert list(found.rows) == ["alone", "torchrun, 2 ranks, gloo"]
    assert [words[0] for words in commands] == ["tools.train", "torch.distributed.run", "torch.distributed.run"]
    assert "NCCL: skipped: no GPU; gloo on the CPU stands for it" in found.notes


def test_what_is_run_depends_on_the_gpus() -> None:
    assert [run.ranks for run in nccl.runs(0)] == [0, 2]
    assert [run.ranks for run in nccl.runs(1)] == [0, 1]
    assert [(run.ranks, run.compiled) for run in nccl.runs(4)] == [(0, False), (1, False), (2, False), (2, True)]


PROJECT = {
    "setup.cfg": "[tool:pytest]\nmarkers =\n    gpu: x\n",
    "tests/test_a.py": (
        "import pytest\n"
        "@pytest.mark.gpu\ndef test_good(): pass\n"
        "@pytest.mark.gpu\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.gpu\n@pytest.mark.skip(reason='no file')\ndef test_left_out(): pass\n"
        "def test_unmarked(): assert False\n"
    ),
}


def test_tests_that_fail_or_are_skipped_are_named(context: Context, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)
    found = tests.measure(context, tmp_path)
    assert found.rows["pytest -m gpu"][:3] == ["1", "1", "1"]
    assert found.failures == ["test test_a::test_bad: assert 1 == 2", "test test_a::test_left_out: no file"]
    (tmp_path / "tests/test_a.py").write_text("def test_unmarked(): pass\n")
    found = tests.measure(context, tmp_path)
    assert found.failures == [f"no test in {tmp_path / 'tests'} is marked gpu"]


def test_where_pytest_gets_nowhere_its_last_line_is_told(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*_: object) -> str:
        raise InputError("pytest: no module of this name")

    monkeypatch.setattr(Context, "command", command)
    with pytest.raises(InputError, match="no module of this name"):
        tests.measure(context, tmp_path)
