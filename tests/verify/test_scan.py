import hashlib
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.format.manifest import Manifest, load_index
from pipeline.format.sample import PARTS
from pipeline.format.tar import TarWriter, tar_header
from pipeline.verify.scan import WIDE, Scan, background_id, parse_header, stored_background, stored_parts

PICTURES = stored_parts("jpeg", PARTS)


def test_a_scan_sees_what_tarfile_sees(packed: Path) -> None:
    for path in sorted(packed.glob("sets-*.tar")):
        scan, members = Scan(path, PICTURES, "decode"), list[tuple[str, int, int, int]]()
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                content = file.read()
                if info.name.endswith(".json"):
                    note = json.loads(content)
                    numbers = note["bg"], note["fg"], note["id"]
                    assert scan.entries[len(members) // 3 - 1].numbers == numbers
                else:
                    members.append((info.name.partition(".")[0], info.offset_data, info.size, zlib.crc32(content)))
        assert [(entry.key, *place) for entry in scan.entries for place in entry.places] == members
        assert {size for entry in scan.entries for size in entry.sizes} == {(48, 48)}
        assert scan.faults == []
        assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert scan.total_bytes == path.stat().st_size
        assert scan.index == path.with_suffix(".idx").read_bytes()


def test_its_rows_are_those_of_the_index(packed: Path) -> None:
    index = load_index(packed, Manifest.load(packed))
    rows = np.concatenate(
        [Scan(path, PICTURES, "header").rows(index.dtype) for path in sorted(packed.glob("sets*.tar"))]
    )
    rows["shard"] = index["shard"]
    assert rows.tobytes() == index.tobytes()


def test_backgrounds_have_no_json(packed: Path) -> None:
    scan = Scan(packed / "backgrounds.tar", [stored_background("jpeg")], "decode", has_json=False)
    assert [entry.key for entry in scan.entries] == [f"bg_{bg:03}" for bg in range(10)]
    assert scan.faults == []


@pytest.mark.parametrize("key", ["", "bg_", "bg_x", "bg_5", "bg_99999999999", "bg_2147483648", "fg_005", "bg_00\u0665"])
def test_a_name_that_is_no_backgrounds(key: str) -> None:
    assert background_id(key) is None, "at once"


def test_a_size_below_zero_is_none() -> None:
    assert parse_header(tar_header("a.jpg", -8))[0] == ""


def test_any_other_byte_in_a_header_is_seen() -> None:
    header = tar_header("fg_000_bg_005_000003.fg_bg.jpg", 1234)
    assert parse_header(header) == ("fg_000_bg_005_000003.fg_bg.jpg", 1234)
    for place in range(len(header)):
        for bit in range(8):
            other = bytearray(header)
            other[place] ^= 1 << bit
            assert parse_header(bytes(other))[0] == ""


def test_what_a_set_lacks_or_has_too_much_is_told(packed: Path, tmp_path: Path) -> None:
    pictures = [packed / "preview.jpg"] * 3
    parts = [(f"{part}.jpg", path.read_bytes()) for part, path in zip(PARTS, pictures, strict=True)]
    note = ("json", b'{"bg": 1, "fg": 2, "id": 3}')
    with TarWriter(tmp_path / "a.tar") as tar:
        tar.add("fg_002_bg_001_000003", [*parts, note])
        tar.add("no_json", parts)
        tar.add("no_mask", [parts[0], parts[2], note])
        tar.add("order", [parts[1], parts[0], parts[2], note])
        tar.add("other_json", [*parts, note])
        tar.add("no_picture", [*parts[:2], ("depth.jpg", b"?"), ("json", b"[]")])
        tar.add("a_png", [parts[0], ("mask.png", parts[1][1]), parts[2], note])
    scan = Scan(tmp_path / "a.tar", PICTURES, "decode")
    assert [entry.key for entry in scan.entries] == ["fg_002_bg_001_000003"]
    told = "expected fg_bg, mask, depth, json"
    assert [str(fault) for fault in scan.faults] == [
        f"no_json: no json there; {told}",
        f"no_mask: no mask there; {told}",
        f"order: holds mask, fg_bg, depth, json; {told}",
        "other_json: json is damaged (it is that of fg_002_bg_001_000003)",
        "no_picture: depth is damaged (neither JPEG nor PNG: starts with b'?')",
        "no_picture: json is damaged (found a list)",
        "a_png: mask is damaged (it is called mask.png, but it is jpg)",
        "a_png: json is damaged (it is that of fg_002_bg_001_000003)",
    ]
    assert len(scan.rows(WIDE)) == 1
