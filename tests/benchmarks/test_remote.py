from pathlib import Path

from benchmarks.harness import Reference
from benchmarks.remote import make_remote, put
from pipeline.storage import Url
from tools.bench_loader import LoadOptions


def test_what_is_put_below_a_url_is_loaded_from_there_and_put_once(packed: Path, bucket: Path) -> None:
    url = Url("s3://bucket/race/ours")
    put(packed, url)
    loader = make_remote("ours", str(url), packed, LoadOptions(32, 16, "cpu", 1))
    assert Reference(packed, 16).compare(loader).mean <= 0.6
    loader.close()  # type: ignore[attr-defined]
    (bucket / "race/ours/manifest.json").unlink()
    put(packed, url)
    assert not (bucket / "race/ours/manifest.json").exists()
