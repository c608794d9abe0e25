"""What every command shares: one-line errors, options made from settings, a progress bar that is quiet in a pipe."""

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.engines import ENGINES, LOCAL
from pipeline.errors import AlreadyComplete, InputError, explain
from pipeline.parts import Part, PartDone
from pipeline.storage import Url, location_of
from pipeline.words import plural, printable
from tools.limits import require_usable
from train.option import Option, kinds_of

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


class Command(click.Command):
    """A click command that turns bad input and failed file operations into one line and exit code 1."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        click.version_option(package_name="fgbg", message="%(prog)s %(version)s")(self)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """Read the arguments; what is wrong with them is told in printable letters."""
        with _printable_errors():
            ctx = super().make_context(*args, **settings)
            require_usable(ctx)
            return ctx

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raise `click.ClickException` for `InputError` and `OSError`."""
        try:
            with _printable_errors(), _printable_warnings():
                return super().invoke(ctx)
        except AlreadyComplete as done:
            echo(str(done))
        except InputError as error:
            raise click.ClickException(_with_notes(str(error), error)) from error
        except BrokenPipeError:  # of `| head`: click ends without a word
            raise
        except OSError as error:
            raise click.ClickException(_with_notes(explain(error), error)) from error
        except KeyboardInterrupt as error:
            echo("", _with_notes("interrupted", error), err=True)
            raise


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = "\n".join(map(printable, error.message.split("\n")))  # type: ignore[misc]
        raise


class _PrintableFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


@contextmanager
def _printable_warnings() -> Iterator[None]:
    """What is logged without a handler goes to standard error: in printable letters."""
    handler = logging.lastResort
    if handler is None:
        yield
        return
    before, handler.formatter = handler.formatter, _PrintableFormatter()
    try:
        yield
    finally:
        handler.formatter = before


def echo(*lines: str, err: bool = False) -> None:
    """Print lines, each in printable letters: names from data may hold what a terminal obeys."""
    for line in lines:
        click.echo(printable(line), err=err)


def _with_notes(text: str, error: BaseException) -> str:
    return printable("; ".join([text, *getattr(error, "__notes__", ())]))


class LocationType(click.Path):
    """A folder as a `Path`, or a URL of object storage as a `pipeline.storage.Url`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `location_of`, whose errors are of usage here."""
        try:
            place = location_of(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return place if isinstance(place, Url) else super().convert(place, param, ctx)


class LocalPathType(click.Path):
    """A file or folder of this machine as a `Path`; a URL is refused, of which `Path` would make a folder `s3:`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `location_of`, whose errors are of usage here."""
        place = LocationType().convert(value, param, ctx)
        if isinstance(place, Url):
            self.fail(f"{place} is a URL: give a path of this machine here, and copy the files yourself", param, ctx)
        return place


def parse_part(_: click.Context, __: click.Parameter, text: str | None) -> Part | None:
    """The callback of an option that takes a part, as I/N."""
    try:
        return Part.parse(text) if text is not None else None
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def part_options(command: Any) -> Any:
    """A decorator that gives a click command the options --part and --finish; see `require_one_way`."""
    part = "Do one of N parts of the work, I from 0 to N - 1: for Slurm arrays, Kubernetes Indexed Jobs, or by hand."
    finish = "Complete what --part has written, once all parts are there; name those that are not."
    command = click.option("--finish", is_flag=True, help=finish)(command)
    return click.option("--part", callback=parse_part, metavar="I/N", help=part)(command)


def require_one_way(part: Part | None, *, finish: bool, engine: str) -> None:
    """Raise `click.UsageError` if both options of `part_options` were given, or one beside a cluster's engine."""
    if engine != LOCAL and (part or finish):
        raise click.UsageError(f"--engine {engine} shares the work out by itself: leave out --part and --finish")
    if part and finish:
        raise click.UsageError("--finish is for when all parts are written: leave out --part")


def describe_part(done: PartDone, one: str = "shard", many: str = "") -> str:
    """In a phrase, which of its jobs a part has done, and how to go on; `one` is what a job is called."""
    part, own, earlier, count = done
    of_all, then = plural(count, one, many), "when all parts are written, give --finish"
    if not own:
        return f"part {part}: nothing to do, there are {of_all}; {then}"
    if earlier == own:
        return f"part {part}: already complete, {own:,} of {of_all}; {then}"
    before = f" ({earlier:,} of them earlier)" if earlier else ""
    return f"part {part}: wrote {own:,} of {of_all}{before}; {then}"


def options_of(config: type, names: Collection[str] | None = None) -> Callable[[Any], Any]:
    """A decorator that gives a click command an option for each field of a dataclass, or for those of some `names`.

    Type and default are the field's, help and choices those of the `train.config.Option` in its metadata; limits are
    left to the dataclass. A bool is --name/--no-name; a field without a default is required.
    """
    wanted = [entry for entry in fields(config) if names is None or entry.name in names]

    def decorate(command: Any) -> Any:
        for entry in reversed(wanted):  # decorators apply from the last to the first
            command = _option_of(entry)(command)
        return command

    return decorate


def _option_of(entry: "Field[Any]") -> Callable[[Any], Any]:
    option: Option = entry.metadata["option"]
    kinds = [kind for kind in kinds_of(entry) if kind is not type(None)]
    words = entry.name.replace("_", "-")
    settings: dict[str, Any] = {"help": option.help}
    if entry.default is MISSING:
        settings["required"] = True
    else:
        settings |= {"default": entry.default, "show_default": option.shown_default or True}
    if option.choices:
        settings["type"] = click.Choice(option.choices)
    elif Url in kinds:
        settings["type"] = LocationType()
    elif os.PathLike in kinds:
        settings["type"] = LocalPathType()
    elif bool not in kinds:
        settings["type"] = kinds[0]
    return click.option(f"--{words}/--no-{words}" if bool in kinds else f"--{words}", **settings)


def engine_option(command: Any) -> Any:
    """Give a click command the option --engine."""
    text = "Where the work is done: on this machine, or on the Ray cluster at RAY_ADDRESS (docs/cluster.md)."
    return click.option("--engine", type=click.Choice(ENGINES), default=LOCAL, show_default=True, help=text)(command)


def progress_bar(
    label: str,
    length: int,
    show: Callable[[Any], str | None] | None = None,
    *,
    width: int = 36,
    percent: bool = False,
    hidden: bool = False,
) -> "ProgressBar[Any]":
    """A bar of `length` steps with time left on standard error; hidden where that is no terminal.

    It tells the steps done, or with `percent` their share; `show` makes a text beside it of what `update` is given.
    """
    return click.progressbar(
        length=length, label=label, width=width, show_pos=not percent, show_percent=percent, item_show_func=show,
        file=sys.stderr, hidden=hidden or not sys.stderr.isatty(),
    )  # fmt: skip


def advance(bar: "ProgressBar[Any]", label: str, more: int, total: int) -> None:
    """Move a bar on by `more` of `total` steps; another label or total is a new stage of the work, and begins at 0."""
    if (bar.label, bar.length) != (label, total):
        bar.label, bar.length, bar.pos, bar.finished = label, total, 0, False
        bar.start, bar.avg, bar.eta_known = time.time(), [], False
    bar.update(more)
