"""An index without shards, as it is opened."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.opening import main, opened, write_sets
from pipeline.errors import InputError
from pipeline.format.manifest import INDEX


def test_what_is_written_is_a_data_set_that_opens_until_a_byte_of_it_changes(tmp_path: Path) -> None:
    write_sets(tmp_path, 2345, 50)
    assert opened(tmp_path).peak_mib == 0
    content = bytearray((tmp_path / INDEX).read_bytes())
    content[-1] ^= 1
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(InputError, match="hash differs"):
        opened(tmp_path)


def test_the_table_has_a_folder_and_both_caches() -> None:
    result = CliRunner().invoke(main, ["--sets", "1500", "--backgrounds", "20"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("1,500 sets: index.npy 0.1 MB, manifest.json 0.0 MB\n")
    assert [line.split(" | ")[0] for line in result.output.splitlines()[4:]] == [
        "| a folder",
        "| through a new cache",
        "| ... that has the index",
    ]
