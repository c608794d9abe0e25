"""Words for a user, and names from data, which may hold anything, made fit to be shown."""

import re

# What a spreadsheet computes, which a number is not; or what `csv_text` has marked.
_FORMULA = re.compile(r"'*(?![+-]?[\d.]+(?:[eE][+-]?\d+)?$)[=+\-@]")


def plural(count: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 set", "2,000 sets"; `many` where it is not `one` and an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def printable(text: str) -> str:
    """A text in one line that does to a terminal or a page nothing but stand there.

    Control characters, line ends, marks that turn the direction of writing, invisible ones and bytes that are no text
    are escaped as Python writes them: \\x1b, \\n, \\u202e, \\xff.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def csv_text(text: str) -> str:
    """A text as a cell of a CSV file: printable, and with a ' before what a spreadsheet would compute; no number is."""
    shown = printable(text)
    return f"'{shown}" if _FORMULA.match(shown) else shown


def from_csv_text(cell: str) -> str:
    """What `csv_text` made a cell of, but for what it escaped."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell
