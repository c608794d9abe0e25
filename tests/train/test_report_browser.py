"""report.html in a real browser, at the width of a desktop and of a telephone, in light and in dark."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from train.report import write_report

WIDTHS = (1200, 400)  # pixels
WRONG = '<table></table><img src="data:image/png;base64,AAAA"><p style="width: 2000px">wide</p>'
# Asks each frame, once all have loaded, what it shows; answers as text, for --dump-dom.
ASKING = """
<script>
addEventListener("load", () => {
  const answers = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const small = [...page.querySelectorAll("body *")].filter(one => !one.closest(".wide"));
    return {
      width: frame.contentWindow.innerWidth,
      scroll_width: page.documentElement.scrollWidth,
      farthest: Math.max(...small.map(one => one.getBoundingClientRect().right)),
      tables: [...page.querySelectorAll("table")].map(table => [table.rows.length, table.offsetHeight > 0]),
      images: [...page.querySelectorAll("img")].map(image => image.naturalWidth),
      charts: [...page.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect().height),
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
      paper: getComputedStyle(page.body).backgroundColor,
      colours: [...new Set([...page.querySelectorAll("svg path, svg use, svg text")].flatMap(shape => {
        const style = getComputedStyle(shape);
        return [style.stroke, shape.localName === "path" ? "none" : style.fill];
      }))].filter(colour => colour !== "none"),
    };
  });
  document.getElementById("answers").textContent = JSON.stringify(answers);
});
</script>
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    return path


def asked(chromium: str, folder: Path, pages: list[tuple[str, int]], *, dark: bool = False) -> Any:
    """What each page, shown in a frame of a width, says, to someone who likes it `dark`."""
    frames = (f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for page, width in pages)
    (folder / "frames.html").write_text(f'<pre id="answers"></pre>{"".join(frames)}{ASKING}')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}/user"]
    flags.append(f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    address = (folder / "frames.html").as_uri()
    done = subprocess.run([chromium, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="answers">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def report(packed: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "run")
    return write_report(run, packed, torch.device("cpu")).read_text()


def test_tables_pictures_and_widths(chromium: str, report: str, tmp_path: Path) -> None:
    *answers, wrong = asked(chromium, tmp_path, [*((report, width) for width in WIDTHS), (WRONG, 400)])
    assert [answer["width"] for answer in answers] == list(WIDTHS)
    for answer in answers:
        assert answer["scroll_width"] <= answer["width"]
        assert answer["farthest"] <= answer["width"]
        assert len(answer["tables"]) == report.count("<table") >= 7
        assert all(rows > 1 and shown for rows, shown in answer["tables"])
        assert len(answer["images"]) == report.count("<img") > 0
        assert all(width > 0 for width in answer["images"])
        assert len(answer["charts"]) >= 7
        assert all(height > 100 for height in answer["charts"])
        assert answer["requests"] == []
    # What the page is asked does tell a wrong one.
    assert (wrong["scroll_width"] > 400, wrong["images"], wrong["tables"]) == (True, [0], [[0, False]])


def test_every_colour_can_be_seen_in_light_and_in_dark(chromium: str, report: str, tmp_path: Path) -> None:
    for dark in (False, True):
        [answer] = asked(chromium, tmp_path, [(report, 400)], dark=dark)
        assert answer["paper"] == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
        assert len(answer["colours"]) == 6  # ink, faint, line and three of curves
        for colour in answer["colours"]:
            assert abs(brightness(colour) - brightness(answer["paper"])) > 30, colour


def brightness(colour: str) -> float:
    """Of "rgb(22, 24, 28)", 0..255."""
    return sum(map(int, re.findall(r"\d+", colour))) / 3
