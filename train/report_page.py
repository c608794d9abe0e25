"""HTML of a report: elements whose text is escaped, tables, and the page around them, which needs no network."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

VOID = ("img", "meta")  # elements without an end
JPEG_QUALITY = 90
DASH = "\N{EN DASH}"  # where there is no value, and between two
# The browser, too, shall refuse whatever is not in the file itself.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #5f6670; --line: #d9dce1; --paper: #ffffff; --shade: #f3f5f8;
  --first: #2563c9; --second: #c2410c; --third: #7c7f86; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --faint: #a0a7b2; --line: #3a3f47; --paper: #16181c;
  --shade: #21252b; --first: #6ea8ff; --second: #ff9b62; --third: #9a9fa8; } }
@media print { :root { color-scheme: light; --ink: #000; --faint: #444; --line: #bbb; --paper: #fff; --shade: #f3f3f3;
  --first: #2563c9; --second: #c2410c; --third: #666; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h2, h3, caption { break-after: avoid; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.result { font-size: 1.15rem; }
.note { color: var(--faint); font-size: .875rem; }
.warning { padding: .5rem .75rem; border-left: .25rem solid var(--second); background: var(--shade); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.wide > table { margin: .5rem 0 1rem; min-width: min(100%, 24rem); }
caption { padding: .25rem 0; color: var(--faint); text-align: left; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
td { overflow-wrap: anywhere; }
td.number, th.number { padding-left: .25rem; text-align: right; }
td.number { white-space: nowrap; }
tbody th.group { padding-top: .75rem; font-weight: 600; }
tr.changed > * { background: var(--shade); font-weight: 600; }
td small { display: block; color: var(--faint); font-size: .75rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0 0 1rem; break-inside: avoid; }
figcaption { font-size: .875rem; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
svg { display: block; width: 100%; height: auto; }
@media (max-width: 36rem) { body { padding: 1rem .75rem 3rem; } h1 { font-size: 1.4rem; }
  table { font-size: .8rem; } th, td { padding-right: .25rem; } td.number, th.number { padding-left: 0; }
  td small { font-size: .6rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .wide { overflow: visible; }
  tr { break-inside: avoid; } }
"""


class Html(str):
    """Text that is HTML already; any other is escaped."""


def safe(content: str) -> Html:
    """The content as HTML: as it is where it is `Html`, escaped where it is not."""
    return content if isinstance(content, Html) else Html(html.escape(content))


def element(name: str, *content: str, **attributes: str | int | float) -> Html:
    """An element around its content; `_` in the name of an attribute stands for `-`, and is dropped at its end."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>" + ("" if name in VOID else "".join(map(safe, content)) + f"</{name}>"))


def joined(parts: Iterable[Html]) -> Html:
    """One after the other."""
    return Html("\n".join(parts))


def table(caption: str, head: Sequence[str], rows: Iterable[Html], *, numbers_from: int = 1) -> Html:
    """A table of finished rows, which scrolls by itself where it is wider than the page.

    Titles from the column `numbers_from` on stand to the right, over numbers.
    """
    titles = (
        element("th", title, scope="col", **({"class_": "number"} if place >= numbers_from else {}))
        for place, title in enumerate(head)
    )
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *titles)),
        element("tbody", *rows),
    )
    return element("div", whole, class_="wide", tabindex=0, role="region", aria_label=caption)


def row(title: str, *cells: str, class_: str = "", numbers: bool = True) -> Html:
    """A row of a table: its title, then its cells."""
    kind = {"class_": "number"} if numbers else {}
    values = (element("td", cell, **kind) for cell in cells)
    return element("tr", element("th", title, scope="row"), *values, **({"class_": class_} if class_ else {}))


def group(title: str, columns: int) -> Html:
    """A row that is the title of those after it."""
    return element("tr", element("th", title, scope="colgroup", colspan=columns, class_="group"))


def paragraph(*content: str, class_: str = "") -> Html:
    """A paragraph; its class is "note", "warning", "result" or none."""
    return element("p", *content, **({"class_": class_} if class_ else {}))


def section(title: str, *content: Html) -> Html:
    """A part of the report under its heading."""
    return element("section", element("h2", title), joined(content))


def photograph(picture: Image.Image, caption: str) -> Html:
    """A picture within the page, JPEG, with its caption below it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    image = element("img", src=source, alt=caption, width=picture.width, height=picture.height)
    return element("figure", image, element("figcaption", caption))


def page(title: str, *content: Html) -> str:
    """The whole file."""
    head = (
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    whole = element("html", element("head", joined(head)), element("body", element("main", joined(content))), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"
