"""No option of any command takes a number that is none or overflows, or a path that is too long."""

from collections.abc import Iterator

import click
import pytest

from tests.commands import command, console_scripts

NUMBERS = ("nan", "inf", "-inf", "1e400", "1" + "0" * 4000, "", "x" * 5000)
TOO_LARGE = (str(2**63), str(2**70))  # of whole numbers
PATHS = ("x" * 5000, "a/" + "x" * 256, "a/" * 3000)


def tried() -> Iterator[tuple[str, str, int, str]]:
    for name in console_scripts():
        for option in command(name).params:
            if isinstance(option, click.Option) and not option.is_flag and option.name != "resume":
                values: tuple[str, ...] = PATHS if isinstance(option.type, click.Path) else ()
                if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
                    values = NUMBERS + TOO_LARGE * isinstance(option.type, click.types.IntParamType)
                yield from ((name, option.opts[0], option.nargs, value) for value in values)


def needed(of: click.Command, but: str) -> list[str]:
    """What a command does not do without."""
    words = list[str]()
    for parameter in of.params:
        if isinstance(parameter, click.Argument):
            words.append("here")
        elif parameter.required and but not in parameter.opts:
            words += [parameter.opts[0], "here"]
    return words


def test_every_option_refuses_what_it_cannot_be() -> None:
    found = list(tried())
    assert len(found) > 300
    for name, option, count, value in found:
        of = command(name)
        with pytest.raises(click.UsageError) as error:
            of.make_context(name, [*needed(of, option), option, *[value] * count])
        assert option in error.value.format_message(), (name, option, value[:20])


@pytest.mark.parametrize(
    ("name", "option"), [("fgbg-compose", "--seed"), ("fgbg-pack", "--seed"), ("fgbg-train", "--seed")]
)
def test_the_largest_seed_is_taken(name: str, option: str) -> None:
    of = command(name)
    assert of.make_context(name, [*needed(of, option), option, str(2**63 - 1)]).params["seed"] == 2**63 - 1
