"""The commands that setup.cfg installs, for tests that look at all of them."""

from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent


def settings() -> ConfigParser:
    """What setup.cfg holds."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def console_scripts() -> dict[str, str]:
    """Where each command is: "fgbg-pack" -> "tools.pack:main"."""
    lines = settings()["options.entry_points"]["console_scripts"].split("\n")
    return {name.strip(): place.strip() for name, _, place in (line.partition("=") for line in lines) if name}


def command(name: str) -> click.Command:
    """A command by its name, such as "fgbg-pack"."""
    module, _, function = console_scripts()[name].partition(":")
    found = getattr(import_module(module), function)
    assert isinstance(found, click.Command)
    return found
