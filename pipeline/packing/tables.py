"""Tables: CSV files as spreadsheets, scripts and other systems write them."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import read_file

MAX_TEXT_BYTES = 1 << 30
SEPARATORS = (",", ";", "\t", "|")
_MARKS = (  # in this order: the mark of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def decode_text(content: bytes) -> str:
    """The text of a file: by its byte order mark, else UTF-16 if every other byte of its start is 0, else UTF-8.

    Bytes that are no UTF-8 become lone surrogates, as in the names of files.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "replace")
    if len(content) >= 4 and 0 in content[:4]:
        return content.decode("utf-16-le" if content[1] == content[3] == 0 else "utf-16-be", "replace")
    return content.decode("utf-8", "surrogateescape")


def read_text_file(path: Path) -> bytes:
    """A file that a user names; raise `InputError` for what would be waited for or read without end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a folder, a pipe or a device: give a file")
    try:
        return read_file(path, most_bytes=MAX_TEXT_BYTES)
    except ValueError as error:
        raise InputError(f"{path} is no layout ({error}, at most {MAX_TEXT_BYTES:,} expected)") from None


def read_table(content: bytes, is_header: Callable[[list[str]], bool]) -> Iterator[list[str]]:
    """The lines of a CSV file from its header on, which `is_header` tells; none if no separator makes it one.

    Empty lines before the header and a first line such as "sep=;" are passed over, later ones are []. Raises
    `csv.Error` for what is no CSV.
    """
    text = re.sub(r"\A\s*(?:sep=.[\r\n]+\s*)?", "", decode_text(content), count=1, flags=re.IGNORECASE)
    for separator in SEPARATORS:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        header = next(lines, [])
        if is_header(header):
            yield header
            yield from (line if any(cell.strip() for cell in line) else [] for line in lines)
            return
