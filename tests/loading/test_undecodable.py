"""Sets whose bytes are as packed, and that DALI refuses: shards that were packed without looking at the pictures."""

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline import Loader, LoaderConfig
from pipeline.errors import InputError
from pipeline.format.images import decode_gray
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.verify.check import CheckOptions, check
from tests.png_files import with_wrong_checksum
from tests.samples import png, set_paths, write, write_sets

BAD = (7, 8, 33)


def replaced(path: Path) -> None:
    """Put a PNG that DALI refuses in the place of a JPEG."""
    gray = decode_gray(path.read_bytes())
    path.unlink()
    write(path.with_suffix(".png"), with_wrong_checksum(png(gray), b"IDAT"))


def headers_only(source: Path, shards: Path) -> Path:
    pack(source, shards, PackOptions(workers=1, verify="header", sets_per_shard=16))
    return shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 sets of one background, three of which DALI refuses: one for its overlay, one its mask, one its depth."""
    folder = tmp_path_factory.mktemp("undecodable")
    source = write_sets(folder / "source", 1, 40)
    for part, number in enumerate(BAD):
        replaced(source / set_paths(0, number, number)[part])
    return headers_only(source, folder / "shards")


def load(shards: Path, *, max_bad_share: float = 0.1, resident: str = "off") -> Loader:
    how = LoaderConfig(batch_size=4, size=16, device="cpu", seed=1, max_bad_share=max_bad_share, resident=resident)
    return Loader(shards, "all", how)


def keys(loader: Loader) -> list[list[str]]:
    return [[loader.key(row) for row in batch.index.tolist()] for batch in loader]


def bad_keys() -> set[str]:
    return {f"fg_{number:03}_bg_000_{number:06}" for number in BAD}


@pytest.mark.parametrize("resident", ["off", "host"])
def test_they_are_left_out_by_name_and_all_else_stays(
    shards: Path, resident: str, caplog: pytest.LogCaptureFixture
) -> None:
    loader = load(shards, resident=resident)
    with caplog.at_level(logging.WARNING):
        epochs = [keys(loader) for _ in range(3)]
    assert sorted(message.split(": ")[1] for message in map(str, loader.quarantined)) == sorted(
        f"{part} in sets-00000{shard}.tar cannot be decoded (PNG does not decode"
        for part, shard in parts_and_shards(loader)
    )
    assert len([record for record in caplog.records if "left out" in record.message]) == len(BAD)  # once
    order = [[loader.key(row) for row in batch] for batch in order_of(shards)]
    assert epochs[0] == [[key for key in batch if key not in bad_keys()] for batch in order]
    for epoch in epochs:
        assert [len(batch) for batch in epoch].count(4) < 10  # the others do not move up
        assert sorted(sum(epoch, [])) == sorted(set(sum(order, [])) - bad_keys())


def parts_and_shards(loader: Loader) -> list[tuple[str, int]]:
    shard_of = {loader.key(row): int(loader.index["shard"][row]) for row in range(loader.sets)}
    names = (f"fg_{number:03}_bg_000_{number:06}" for number in BAD)
    return [(part, shard_of[key]) for part, key in zip(("fg_bg", "mask", "depth"), names, strict=True)]


def order_of(shards: Path) -> list[list[int]]:
    """The rows of the batches of the first epoch, were all sets good."""
    sampler = load(shards)._sampler
    return [sampler.batch(0, number)[0].positions.tolist() for number in range(sampler.batches)]


def test_a_run_resumed_at_any_step_sees_the_same_batches(shards: Path) -> None:
    whole = load(shards)
    expected = [(batch.index.tolist(), batch.mask.numpy().copy()) for _ in range(2) for batch in whole]
    for step in range(1, 20, 2):
        first, second = load(shards), load(shards)
        iterator, taken = iter(first), 0
        while taken < step:
            try:
                next(iterator)
                taken += 1
            except StopIteration:
                iterator = iter(first)
        second.load_state_dict(first.state_dict())
        first.close()
        rest = [(batch.index.tolist(), batch.mask.numpy().copy()) for _ in range(2 - step // 10) for batch in second]
        assert [rows for rows, _ in rest] == [rows for rows, _ in expected[step:]]
        assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(rest, expected[step:], strict=True))


def test_a_batch_of_which_none_is_left_is_empty(tmp_path: Path) -> None:
    source = write_sets(tmp_path / "source", 1, 12)
    for number in range(12):
        replaced(source / set_paths(0, number, number)[1])
    loader = load(headers_only(source, tmp_path / "shards"), max_bad_share=1)
    assert [len(batch.index) for batch in loader] == [0, 0, 0]
    assert len(loader.quarantined) == 12


def test_too_many_end_the_iteration_with_the_remedy(shards: Path) -> None:
    message = (
        r"^2 of 40 sets \(split all\) are damaged, at most 2\.5% may be; .*: pack again with --verify decode, or allow"
    )
    with pytest.raises(InputError, match=message):
        keys(load(shards, max_bad_share=0.025))


def test_one_that_is_asked_for_by_its_row_is_named(shards: Path) -> None:
    loader = load(shards)
    rows = [row for row in range(40) if loader.key(row) in bad_keys()]
    with pytest.raises(InputError, match=rf"^{loader.key(rows[0])}: .* cannot be decoded \(PNG .*: pack again with"):
        loader.pick([0, rows[0]])


def test_a_background_is_named_since_every_set_on_it_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_sets(tmp_path / "source", 3, 2)
    replaced(source / "bg/bg_001.jpg")
    monkeypatch.setattr("pipeline.packing.inputs.as_stored", lambda content: (content, ""))
    monkeypatch.setattr("pipeline.format.images.Png.fault", "")
    monkeypatch.setattr("pipeline.packing.inputs.check_picture", unchecked)
    headers_only(source, tmp_path / "shards")
    with pytest.raises(
        InputError, match=r"backgrounds\.tar: background 1 cannot be decoded .* pack again with --verify"
    ):
        load(tmp_path / "shards")


def unchecked(content: bytes) -> object:
    from pipeline.format.images import Picture

    return Picture("png" if content.startswith(b"\x89PNG") else "jpg", content, (48, 48))


def test_what_the_check_calls_good_is_what_loads(shards: Path) -> None:
    report = check(shards, CheckOptions(workers=1, decode=True))
    assert {line.split(": ")[1] for line in report.damage if "is damaged" in line} >= bad_keys()
    assert not check(shards, CheckOptions(workers=1)).damage
