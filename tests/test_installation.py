"""What to install is told as this installation has it: never a bare name that anybody could take on an index."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import installation
from pipeline.installation import ROOT, install_hint

REQUIRES = [
    "torch>=2.6",
    'psutil>=6; extra == "bench"',
    "onnx>=1.17; extra == 'export'",
    "onnxscript; extra == 'export'",
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Sets what pip has recorded of fgbg, and whether its code lies in a checkout."""

    def set_up(record: object, *, checkout: bool = False, requires: list[str] | None = None) -> None:
        text = record if isinstance(record, str) or record is None else json.dumps(record)
        found = SimpleNamespace(read_text=lambda name: text, requires=requires)
        monkeypatch.setattr(installation, "Distribution", SimpleNamespace(from_name=lambda name: found))
        if not checkout:
            monkeypatch.setattr(installation, "ROOT", tmp_path)

    return set_up


def test_in_the_checkout_it_is_the_checkout(installed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    installed(None, checkout=True)
    assert install_hint("bench") == "pip install '.[bench]'"
    installed({"url": ROOT.as_uri(), "dir_info": {"editable": True}}, checkout=True)
    assert install_hint("bench") == "pip install -e '.[bench]'"
    installed({"url": "file:///another/checkout", "dir_info": {"editable": True}}, checkout=True)
    assert install_hint("bench") == "pip install '.[bench]'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("bench") == f"pip install '{ROOT}[bench]'"


def test_from_a_wheel_it_is_that_wheel(installed: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "fgbg-0.1.0-py3-none-any.whl"
    record = {"url": wheel.as_uri(), "archive_info": {}}
    installed(record, requires=REQUIRES)
    assert install_hint("bench") == "pip install 'psutil>=6'"  # the wheel is gone
    wheel.parent.mkdir()
    wheel.touch()
    assert install_hint("bench") == f"pip install 'fgbg[bench] @ {wheel.as_uri()}'"
    installed({"url": "https://host/fgbg.whl", "archive_info": {}})
    assert install_hint("bench") == "pip install 'fgbg[bench] @ https://host/fgbg.whl'"
    installed({"url": "https://host/fgbg.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert install_hint("bench") == "pip install 'fgbg[bench] @ git+https://host/fgbg.git@abc'"


@pytest.mark.parametrize("record", [None, "{", "[]", {}])
def test_without_a_record_it_is_what_the_extra_requires(record: object, installed: Any) -> None:
    installed(record, requires=REQUIRES)
    assert install_hint("export") == "pip install 'onnx>=1.17' onnxscript"
    assert install_hint("other") == "install fgbg's extra other from where fgbg came from"


def test_no_message_names_a_package_that_no_index_has() -> None:
    for package in ("pipeline", "train", "tools", "benchmarks", "docs"):
        for file in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.md")]:
            assert "install 'fgbg[" not in file.read_text(), file
