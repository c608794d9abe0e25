"""The table of docs/capacity.md, and its arithmetic."""

from click.testing import CliRunner

from benchmarks.capacity import RATES, duration, main, money, rows, size
from tests.commands import ROOT

MEASURED = {name: rate.value for name, rate in RATES.items()}


def test_the_page_has_the_table_that_is_printed() -> None:
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    assert result.output in (ROOT / "docs" / "capacity.md").read_text()


def test_rates_of_ones_own_change_what_follows_from_them() -> None:
    result = CliRunner().invoke(main, ["--sets", "7200", "--pack-rate", "1", "--deadline", "0.5", "--set-bytes", "500"])
    lines = result.output.splitlines()
    assert lines[0] == "| | 7,200 sets |"
    assert "| packing | 2 h (4) |" in lines
    assert "| stored | 3.6 MB |" in lines


def test_figures_of_400_000_sets() -> None:
    found = {row.title: row.cell for row in rows(400_000, MEASURED)}
    assert found["shards"] == "400"
    assert found["index.npy"] == "34 MB"
    assert found["an epoch in parts of 8 MiB, through a cache"] == "1,200, $0.0005"
    assert found["an epoch of all sets, a range each, without one"] == "400,000, $0.16"
    assert found["composing from photographs"] == "1.8 min"
    assert found["cache of each of 8 hosts: twice its share of an epoch"] == "2 GB"
    [alone] = [row.cell for row in rows(400_000, MEASURED | {"hosts": 1}) if row.title.startswith("cache of each of 1")]
    assert alone == "8 GB"


def test_sizes_prices_and_durations() -> None:
    assert [size(count) for count in (999e3, 1e6, 8.4e9, 2e12, 2e15)] == [
        "999 kB",
        "1 MB",
        "8.4 GB",
        "2 TB",
        "2,000 TB",
    ]
    assert [money(price) for price in (0.0005, 0.16, 4.6, 46.2)] == ["$0.0005", "$0.16", "$4.60", "$46"]
    assert [duration(sec) for sec in (0.044, 85, 106, 5399, 5400)] == ["0.044 s", "85 s", "1.8 min", "90 min", "1.5 h"]
