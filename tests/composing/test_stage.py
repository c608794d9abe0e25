import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline.composing.stage
from pipeline.composing.stage import READY, Backdrop, Cutout, Place, Stage, prepare
from pipeline.errors import InputError
from pipeline.format.images import BadImage, decode_rgb
from pipeline.workers import Workers
from tests.samples import smooth_picture

SIZE = 48


class Waves:
    """A source of 4 backgrounds and 3 foregrounds, some of which are bad; it counts what it is asked for."""

    size = SIZE
    has_depth = True
    backgrounds = ("b0", "b1", "b2", "b3")
    foregrounds = ("f0", "f1", "f2")

    def __init__(self, bad: frozenset[str] = frozenset()) -> None:
        self.bad, self.asked = bad, list[str]()

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name in self.bad:
            raise BadImage(f"{name} is bad")

    def background(self, number: int) -> Backdrop:
        self._ask(f"b{number}")
        return Backdrop(smooth_picture(number), smooth_picture(10 + number, 1)[..., 0], f"ground {number}")

    def foreground(self, number: int) -> Cutout:
        self._ask(f"f{number}")
        rgba = np.dstack([smooth_picture(20 + number), np.full((SIZE, SIZE), 255, np.uint8)])
        return Cutout(rgba[: 20 + number], f"size {number}")

    def place(self, stage: Stage, bg: int, fg: int, rng: random.Random) -> Place:
        raise AssertionError("nobody asks for places here")


def staged(folder: Path, source: Waves, *, skip_bad: bool = False) -> tuple[Stage, list[str]]:
    with Workers(1) as workers:
        problems = prepare(folder, source, 90, workers, skip_bad=skip_bad)
    return Stage(folder, source), [problem.path for problem in problems]


def test_pictures_come_back_as_they_were_made_ready(tmp_path: Path) -> None:
    stage, problems = staged(tmp_path, Waves())
    assert (stage.backgrounds, stage.foregrounds, problems) == (4, 3, [])
    for bg in range(4):
        assert (stage.rgb(bg) == smooth_picture(bg)).all()
        assert (stage.levels(bg) == smooth_picture(10 + bg, 1)[..., 0]).all()
        assert np.abs(decode_rgb(stage.encoded(bg)).astype(int) - smooth_picture(bg)).mean() < 4
    assert stage.cutout(2).size == (SIZE, 22)
    assert stage.metadata(1, 2) == ("ground 1", "size 2")


def test_bad_ones_are_numbered_away(tmp_path: Path) -> None:
    stage, problems = staged(tmp_path, Waves(frozenset({"b1", "f0"})), skip_bad=True)
    assert problems == ["b1", "f0"]
    assert list(stage.names()) == [("bg", 0, "b0"), ("bg", 1, "b2"), ("bg", 2, "b3"), ("fg", 0, "f1"), ("fg", 1, "f2")]
    assert (stage.rgb(1) == smooth_picture(2)).all()
    assert stage.cutout(0).height == 21


def test_the_first_bad_one_stops_it_unless_skipped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="background b1: b1 is bad; repair or remove it, or pass --skip-bad"):
        staged(tmp_path, Waves(frozenset({"b1", "f0"})))


def test_a_stage_that_is_ready_is_not_made_again(tmp_path: Path) -> None:
    staged(tmp_path, Waves(frozenset({"b1"})), skip_bad=True)
    again = Waves()
    stage, problems = staged(tmp_path, again)
    assert (again.asked, problems, stage.backgrounds) == ([], ["b1"], 3)
    (tmp_path / READY).unlink()  # as if it had been killed before the end
    stage, problems = staged(tmp_path, again)
    assert (len(again.asked), problems, stage.backgrounds) == (7, [], 4)


@pytest.mark.parametrize("after", [0, 3, 8, 12])
def test_a_full_disk_is_called_that_and_the_stage_goes_on(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a mapping it would kill the process (SIGBUS), and NumPy says "28416 requested and 24448 written"."""
    calls = iter(range(99))

    def full(whole: Callable[..., int]) -> Callable[..., int]:
        def write(*arguments: Any) -> int:
            if next(calls) >= after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(*arguments)

        return write

    with monkeypatch.context() as patched:
        for name in ("write", "pwrite"):
            patched.setattr(os, name, full(getattr(os, name)))
        with pytest.raises(OSError, match="No space left on device") as error:
            staged(tmp_path, Waves())
    assert Path(error.value.filename).parent == tmp_path
    stage, _ = staged(tmp_path, Waves())
    assert all((stage.rgb(bg) == smooth_picture(bg)).all() for bg in range(4))


def test_sprites_are_kept_up_to_a_limit_and_are_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = staged(tmp_path, Waves())
    whole = [stage.sprite(fg, 10 + n, 12, mirrored) for fg in range(3) for n in range(9) for mirrored in (False, True)]
    assert stage.sprite(0, 10, 12, False) is whole[0]
    monkeypatch.setattr(pipeline.composing.stage, "SPRITE_BYTES", 4 * whole[0].bytes)
    small = Stage(tmp_path, stage.source)
    again = [small.sprite(fg, 10 + n, 12, mirrored) for fg in range(3) for n in range(9) for mirrored in (False, True)]
    for one, other in zip(whole, again, strict=True):
        assert (one.premultiplied == other.premultiplied).all()
    assert small.sprite(0, 10, 12, False) is not again[0]
    assert small._sprite_bytes <= 4 * whole[0].bytes


def test_a_sprite_is_resized_and_mirrored(tmp_path: Path) -> None:
    stage, _ = staged(tmp_path, Waves())
    plain, mirrored = (stage.sprite(0, 24, 10, side) for side in (False, True))
    assert plain.alpha.shape == (10, 24)
    assert all(
        np.array_equal(getattr(plain, name), getattr(mirrored, name)[:, ::-1]) for name in ("alpha", "premultiplied")
    )
    canvas = np.zeros((10, 24, 3), np.uint8)
    plain.blend_into(canvas, 0, 0)
    assert (canvas == np.asarray(stage.cutout(0).resize((24, 10), Image.Resampling.HAMMING))[..., :3]).all()
