"""What all commands share: help that comes at once, options made from a dataclass."""

import configparser
import errno
import io
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tools.cli import Command, LocalPathType, advance, options_of, progress_bar
from train.config import StrPath
from train.option import Option, setting

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "nvidia.dali", "matplotlib", "tensorboard", "pytorch_msssim", "jinja2")


def commands() -> set[str]:
    """The modules of the commands that setup.cfg installs."""
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    places = re.findall(r"= *([\w.]+):main", parsed["options.entry_points"]["console_scripts"])
    assert len(places) > 5
    return set(places)


@pytest.mark.parametrize("module", sorted(commands()))
def test_help_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module} as command\n"
        "try:\n    command.main(['--help'])\n"
        "finally:\n"
        f"    print('loaded:', *[name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


@dataclass(frozen=True)
class Sample:
    place: StrPath = field(metadata={"option": Option("Where.")})
    count: int | None = setting(None, "How many.", minimum=1, shown_default="all")
    share: float = setting(0.5, "How much.")
    kind: str = setting("a", "Which.", choices=("a", "b"))
    more_of_it: bool = setting(True, "Whether.")


@click.command()
@options_of(Sample)
def command(**values: object) -> None:
    click.echo(repr(Sample(**values)))  # type: ignore[arg-type]


def test_options_have_the_types_defaults_and_choices_of_the_fields() -> None:
    run = CliRunner().invoke
    assert run(command, ["--place", "x"]).output == f"{Sample(Path('x'))!r}\n"
    given = ["--place", "x", "--count", "3", "--share", "1", "--kind", "b", "--no-more-of-it"]
    assert run(command, given).output == f"{Sample(Path('x'), 3, 1.0, 'b', False)!r}\n"
    for wrong in ([], ["--place", "x", "--count", "1.5"], ["--place", "x", "--kind", "c"]):
        assert run(command, wrong).exit_code == 2


@click.command()
@click.argument("path", type=LocalPathType())
def local(path: Path) -> None:
    click.echo(repr(path))


def test_a_url_is_refused_where_only_a_path_can_be() -> None:
    assert CliRunner().invoke(local, ["file:///data/a"]).output == f"{Path('/data/a')!r}\n"
    for url, said in (("s3://bucket/a", "s3://bucket/a is a URL: give a path"), ("s3:/bucket/a", "looks like one")):
        result = CliRunner().invoke(local, [url])
        assert result.exit_code == 2
        assert said in result.output


def test_the_help_is_in_the_order_of_the_fields() -> None:
    lines = CliRunner().invoke(command, ["--help"]).output.partition("Options:\n")[2].splitlines()
    assert [" ".join(line.split()) for line in lines[:5]] == [
        "--place PATH Where. [required]",
        "--count INTEGER How many. [default: (all)]",
        "--share FLOAT How much. [default: 0.5]",
        "--kind [a|b] Which. [default: a]",
        "--more-of-it / --no-more-of-it Whether. [default: more-of-it]",
    ]


def test_nothing_is_said_where_nobody_reads_on() -> None:
    @click.command(cls=Command)
    def command() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    done = CliRunner().invoke(command, [])
    assert done.exit_code == 1
    assert done.output == ""


def test_a_bar_is_full_only_at_the_end_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    with progress_bar("reading", 1, width=4) as bar:
        for label, steps in {"reading": 2, "writing": 4, "checking": 4}.items():
            for _ in range(steps):
                advance(bar, label, 1, steps)
    drawn = re.findall(r"\b([a-z]+)  \[([#-]+)\]  (\d/\d)", screen.getvalue().replace("\x1b[?25l", ""))
    assert drawn == [
        *(("reading", "----", "0/1"), ("reading", "##--", "1/2"), ("reading", "####", "2/2")),
        *((label, "#" * n + "-" * (4 - n), f"{n}/4") for label in ("writing", "checking") for n in range(1, 5)),
    ]
