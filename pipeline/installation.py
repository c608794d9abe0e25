"""How this fgbg was installed, for what tells a user what to install beside it: it is on no package index."""

import json
import shlex
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "fgbg"
ROOT = Path(__file__).parent.parent
"""Of the code that runs: a checkout, or site-packages."""


def install_hint(extra: str) -> str:
    """The command that adds one of the extras of setup.cfg to this installation.

    From a checkout "pip install '.[bench]'", with its path where that is not the working folder, and -e where it was
    installed so. From a wheel, an archive or a repository, that same one (PEP 610's direct_url.json tells which). Where
    it is not known or gone, the extra's own requirements: whoever takes the name fgbg on an index must not be asked.
    """
    origin = _origin()
    if (ROOT / "setup.cfg").is_file():
        editable = "-e " if origin.get("dir_info") == {"editable": True} and origin["url"] == ROOT.as_uri() else ""
        place = "." if Path.cwd() == ROOT else str(ROOT)
        return f"pip install {editable}{shlex.quote(f'{place}[{extra}]')}"
    if source := _source(origin):
        return f"pip install {shlex.quote(f'{NAME}[{extra}] @ {source}')}"
    if packages := _packages(extra):
        return f"pip install {shlex.join(packages)}"
    return f"install fgbg's extra {extra} from where fgbg came from"


def _origin() -> dict[str, Any]:
    """What pip has recorded of the place that it installed from; empty without a record."""
    try:
        found = json.loads(Distribution.from_name(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _source(origin: dict[str, Any]) -> str:
    """The URL to install from again; empty where there is none, or where it names a file that is gone."""
    url = str(origin.get("url", ""))
    parts = urlsplit(url)
    if parts.scheme == "file" and not Path(unquote(parts.path)).exists():
        return ""
    if version_control := origin.get("vcs_info"):
        return f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
    return url


def _packages(extra: str) -> list[str]:
    """What the extra requires, as "psutil>=6", by the metadata of the installed package."""
    try:
        required = Distribution.from_name(NAME).requires or []
    except PackageNotFoundError:
        required = []
    named = (line.partition(";") for line in required)
    return [package.strip() for package, _, marker in named if f'extra == "{extra}"' in marker.replace("'", '"')]
