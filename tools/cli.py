"""What every command shares: one-line errors and a progress bar that is quiet in a pipe."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import InputError

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


class Command(click.Command):
    """A click command that turns bad input and failed file operations into one line and exit code 1."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        click.version_option(package_name="fgbg", message="%(prog)s %(version)s")(self)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; raise `click.ClickException` for `InputError` and `OSError`."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise click.ClickException(_with_notes(str(error), error)) from error
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise click.ClickException(_with_notes(f"{error.strerror or error}{where}", error)) from error
        except KeyboardInterrupt as error:
            click.echo(_with_notes("\ninterrupted", error), err=True)
            raise


def _with_notes(text: str, error: BaseException) -> str:
    return "; ".join([text, *getattr(error, "__notes__", ())])


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
