"""A page of HTML as a test reads it."""

from html.parser import HTMLParser

VOID = ("img", "meta")


class Page(HTMLParser):
    """Its text, tables and pictures; ends with an AssertionError where an element is not closed in its turn."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open = list[str]()
        self.texts = dict[str, str]()  # all text below each kind of element
        self.attributes = list[tuple[str, str, str]]()  # element, name, value
        self.tables = dict[str, list[list[str]]]()  # rows of texts, by caption
        self._rows = list[list[str]]()
        self._caption = ""
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"
        if tag == "table":
            assert self._caption not in self.tables
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data
        if "caption" in self.open:
            self._caption += data
        elif ("td" in self.open or "th" in self.open) and "small" not in self.open:
            self._rows[-1][-1] += data
        elif "small" in self.open:
            self._rows[-1][-1] += f" {data}"

    def table(self, caption: str) -> dict[str, list[str]]:
        """The rows of the table whose caption begins so, by their first cell, which must be different."""
        [rows] = [rows for title, rows in self.tables.items() if title.startswith(caption)]
        assert len({row[0] for row in rows}) == len(rows)
        return {row[0]: row[1:] for row in rows}
