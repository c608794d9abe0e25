import re
from pathlib import Path

import numpy as np
import pytest

from tests.samples import png, smooth_picture, write
from tests.tools.test_bench import report, run


def test_packing_beside_shard_writer(source: Path) -> None:
    result = run("--packing", source, "--rounds", 2, "--workers", 1)
    found = report(result)
    ours = {"ours (verify header)", "ours (verify decode)"}
    assert set(found["packing"]) == {*ours, "webdataset.ShardWriter", "tar cf"}
    assert found["startup_sec"] > 0
    assert re.search(r"timed with it, .*: \d+\.\d s, \d+% of ours \(verify header\) on 100 sets;", result.output)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_composing_is_measured_beside_the_originals_way(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "bg" / f"{number}.png", png(smooth_picture(number)))
        alpha = np.zeros((48, 48, 1), np.uint8)
        alpha[8:40, 8:40] = 255
        write(tmp_path / "fg" / f"{number}.png", png(np.dstack([smooth_picture(9 + number), alpha])))
    result = run("--composing", tmp_path, "--sets", 10, "--rounds", 2)
    ours, loose, original, floor = report(result)["composing"].values()
    assert original["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert 20 < ours["peak_mib"] < 2000
    assert "peak_mib" not in floor
    assert loose["sets_per_sec"]["median"] > 0
