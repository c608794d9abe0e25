import pytest
from click.testing import CliRunner

from tests.commands import command, console_scripts, settings


@pytest.mark.parametrize("name", console_scripts())
def test_every_command_says_its_version(name: str) -> None:
    result = CliRunner().invoke(command(name), ["--version"], prog_name=name)
    assert result.exit_code == 0
    assert result.output == f"{name} {settings()['metadata']['version']}\n"
