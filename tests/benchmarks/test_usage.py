import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmark.usage import forget_peak, peak_mib, used

CHILD = """
import sys
held = bytearray(64 << 20)
for page in range(0, len(held), 4096):
    held[page] = 1
open(sys.argv[1], 'rb').read()
total = sum(range(3_000_000))
print('ready', flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    return tmp_path / "file"


def test_children_count_while_they_live_and_their_time_afterwards(busy: Path) -> None:
    before = used()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdin
        assert child.stdout.readline() == "ready\n"
        alive = used().since(before)
        assert alive.cpu_sec > 0
        assert alive.read_bytes >= 1 << 20
        alone, together = peak_mib(child.pid), peak_mib()
        assert alone > 64
        assert together > 64 + 1
        child.stdin.write("\n")
    assert used().since(before).cpu_sec >= alive.cpu_sec - 0.02  # clock ticks


def test_bytes_of_this_process(busy: Path) -> None:
    before = used()
    busy.read_bytes()
    assert 1 << 20 <= used().since(before).read_bytes < 2 << 20


def test_a_forgotten_peak_begins_anew() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    held = bytearray(os.urandom(1)) * (128 << 20)
    peak = peak_mib(os.getpid())
    del held
    forget_peak()
    assert peak_mib() < peak - 100
