"""What commands print: names from data may hold what a terminal obeys, and are escaped wherever they are printed."""

import csv
import logging
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.errors import InputError
from pipeline.words import printable
from tests.samples import png, smooth_picture, write, write_sets
from tools.cli import Command, echo
from tools.compose import main as compose
from tools.pack import main as pack
from tools.predict import main as predict

NASTY = "\x1b]0;x\x07\x1b[2J\nok\u202e" + os.fsdecode(b"\xff")


def require_plain(result: Result, lines: int | None = None) -> str:
    """What a command printed, which must be plain; its lines are as many as it wrote itself."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert all(line.isprintable() for line in result.output.removesuffix("\n").split("\n")), ascii(result.output)
    assert lines is None or result.output.count("\n") == lines
    return result.output


def test_pack_prints_no_name_as_it_is(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 2, 1)
    write(source / "fg_bg" / f"{NASTY}.jpg", b"")
    arguments = ["--workers", "1", "--shards", str(tmp_path / "shards")]
    dry = require_plain(CliRunner().invoke(pack, [str(source), "--dry-run", *arguments]))
    assert r"\x1b]0;x\x07\x1b[2J\nok\u202e\xff.jpg: unknown" in dry
    assert r"\x1b]0;x\x07" in require_plain(CliRunner().invoke(pack, [str(source), "--strict", *arguments]), 1)
    (source / "bg" / "bg_000.jpg").unlink()
    (source / "bg" / "bg_001.jpg").unlink()
    require_plain(CliRunner().invoke(pack, [str(source), *arguments]), 1)
    (source / NASTY).symlink_to(source / "bg")
    for at in (source / NASTY, tmp_path / NASTY):
        assert r"\x1b]0;" in require_plain(CliRunner().invoke(pack, [str(at), *arguments]), 1)


def test_compose_and_predict_print_and_list_no_name_as_it_is(tmp_path: Path) -> None:
    for name in (f"=a,{NASTY}", "b"):
        write(tmp_path / "bg" / f"{name}.png", png(smooth_picture(1)))
    picture = smooth_picture(2, 4)
    picture[:9, :, 3], picture[9:, :, 3] = 0, 255
    write(tmp_path / "fg" / "c.png", png(picture))
    (tmp_path / "bg" / f"{NASTY}.jpg").symlink_to("nothing")
    folders = ["--backgrounds", str(tmp_path / "bg"), "--foregrounds", str(tmp_path / "fg")]
    arguments = [*folders, "--workers", "1", "--size", "32", "--placements", "1", "--no-mirror"]
    told = require_plain(CliRunner().invoke(compose, [str(tmp_path / "out"), *arguments]))
    assert r"1 not read: a link to nothing (1, as \x1b]0;" in told
    with (tmp_path / "out" / "sources.csv").open(newline="") as table:
        rows = list(csv.reader(table))
    assert [row[2] for row in rows] == [
        "file",
        f"'=a,{printable(NASTY)}.png",
        "b.png",
        "c.png",
    ]
    write(tmp_path / "bg" / f"{NASTY}.png", b"no picture")
    require_plain(CliRunner().invoke(compose, [str(tmp_path / "out2"), *arguments]), 2)
    pictures = ["--background", str(tmp_path / "fg"), "--overlay", str(tmp_path / "bg")]
    require_plain(CliRunner().invoke(predict, ["run", *pictures, "--out", str(tmp_path / "o")]), 2)


def test_whatever_a_command_ends_with_is_printed_plainly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: BaseException) -> Result:
        @click.command(cls=Command)
        def command() -> None:
            raise error

        return CliRunner().invoke(command, [])

    noted = InputError(NASTY)
    noted.add_note(NASTY)
    for error in (
        noted,
        OSError(2, "No such file", NASTY),
        OSError(NASTY),
        click.ClickException(NASTY.replace("\n", "")),
    ):
        require_plain(fail(error), 1)
    require_plain(CliRunner().invoke(predict, [f"--{NASTY}"]))

    @click.command(cls=Command)
    def warning() -> None:
        logging.getLogger("fgbg-test").warning("left out %s", NASTY)
        echo(NASTY, "second")

    monkeypatch.setattr(logging.getLogger("fgbg-test"), "propagate", False)
    warning.main([], standalone_mode=False)
    told = capsys.readouterr()
    assert told.err == "left out \\x1b]0;x\\x07\\x1b[2J\\nok\\u202e\\xff\n"
    assert told.out == "\\x1b]0;x\\x07\\x1b[2J\\nok\\u202e\\xff\nsecond\n"
