import re
from pathlib import Path

import pytest

from pipeline.errors import InputError, Problem
from pipeline.packing.finalize import read_problems, write_problems
from pipeline.words import csv_text, from_csv_text, plural, printable


def test_one_is_singular_and_all_else_plural() -> None:
    assert [plural(count, "set") for count in (0, 1, 2, 1000)] == ["0 sets", "1 set", "2 sets", "1,000 sets"]
    assert plural(1, "shard directory", "shard directories") == "1 shard directory"
    assert plural(2, "shard directory", "shard directories") == "2 shard directories"


HOSTILE = {
    "\x1b]0;title\x07\x1b[31m": r"\x1b]0;title\x07\x1b[31m",
    "two\nlines\rover\t\x00\x7f\x85": r"two\nlines\rover\t\x00\x7f\x85",
    "gpj.\u202etxt\u2066\u200f\u200b\ufeff": r"gpj.\u202etxt\u2066\u200f\u200b\ufeff",
    "para\u2028graph\u2029": r"para\u2028graph\u2029",
    b"latin\xff1".decode(errors="surrogateescape"): r"latin\xff1",
    "half\ud83d": r"half\ud83d",
    "möbel 日本 e\u0301 🚗": "möbel 日本 e\u0301 🚗",
}


@pytest.mark.parametrize(("name", "shown"), HOSTILE.items(), ids=ascii)
def test_what_a_terminal_would_obey_is_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(shown) == shown
    assert str(InputError(f"{name} is bad")) == f"{shown} is bad"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|'/c calc'!A1", "'=cmd|'/c calc'!A1"), ("+1+1", "'+1+1"), ("-x.jpg", "'-x.jpg"), ("@A1", "'@A1"),
        ("'=1", "''=1"), ("\t=1", r"\t=1"), ("\r=1", r"\r=1"), ("-0.5", "-0.5"), ("+7", "+7"), ("-1e-05", "-1e-05"),
        ("'quoted'", "'quoted'"), ("a=b", "a=b"), ("", ""),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula_and_every_cell_is_read_as_it_was(text: str, cell: str) -> None:
    assert csv_text(text) == cell
    assert from_csv_text(cell) == printable(text)


def test_names_from_data_in_problems_csv_and_back(tmp_path: Path) -> None:
    problems = [Problem(f'{start}{name},"x".jpg', "unknown", "why") for name in HOSTILE for start in ("=", "")]
    write_problems(tmp_path / "problems.csv", problems)
    text = (tmp_path / "problems.csv").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    assert not re.search(r'^"?[=+@-]', text, re.MULTILINE)
    found = read_problems(tmp_path / "problems.csv")
    assert sorted(found) == sorted(Problem(*map(printable, problem)) for problem in problems)
    write_problems(tmp_path / "again.csv", found)
    assert (tmp_path / "again.csv").read_text() == text
