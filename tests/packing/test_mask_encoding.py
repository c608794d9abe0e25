"""Masks in any encoding: recognised from a sample and |fg_bg - bg| and converted, or refused with the remedy."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.format.images import BadImage, decode_gray, encode_gray
from pipeline.format.manifest import Manifest, load_index
from pipeline.loading.shard_reader import ShardReader
from pipeline.packing.mask_encoding import SampledMask, recognise_mask_files
from pipeline.packing.mask_files import MaskFiles, mask_values, share_border
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.packing.plausibility import shrink
from tests.miniatures import write_tar, write_zip
from tests.samples import files_below, jpeg, png, set_paths, soft_disc, write, write_sets

U8 = NDArray[np.uint8]
SIZE, SAMPLE = 96, 6
BLACK_WHITE = [0, 0, 0, 255, 255, 255]
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * 749 + [224, 224, 192]


def truth(number: int) -> U8:
    """A disc, 0 and 255, [SIZE, SIZE], its place told apart by number."""
    disc: U8 = np.where(soft_disc(number, SIZE)[..., 0] >= 128, 255, 0).astype(np.uint8)
    return disc


def soft(mask: U8) -> U8:
    """The same with soft edges."""
    return np.asarray(Image.fromarray(mask).resize((SIZE // 2, SIZE // 2)).resize((SIZE, SIZE)))


def palette(indices: U8, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices, "L")
    image.putpalette(colours)
    return image


def ringed(mask: U8, value: int) -> U8:
    """Of a value where the mask is, 255 within 2 pixels of its edge."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            edge |= np.roll(mask, step, axis) != mask
    return np.where(edge, 255, np.where(mask > 0, value, 0)).astype(np.uint8)


def channels(mask: U8, *bands: object) -> Image.Image:
    """Bands of a value each, or of the mask where it is None."""
    planes = [mask if band is None else np.full_like(mask, band) for band in bands]
    return Image.merge("RGBA"[: len(bands)] if len(bands) > 2 else "LA", [Image.fromarray(plane) for plane in planes])


def content(image: Image.Image | NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def labelled(mask: U8) -> U8:
    """The foreground is class 2, the lower half of the picture class 1."""
    ground = (np.arange(SIZE)[:, None] > SIZE // 2).astype(np.uint8) * np.ones_like(mask)
    return np.where(mask > 0, 2, ground).astype(np.uint8)


# What is written of a mask (and its number), the reading that is expected, and words of the reason.
KINDS: dict[str, tuple[Callable[[U8, int], bytes], MaskFiles, str]] = {
    "gray": (lambda m, n: content(m), MaskFiles(), ""),
    "gray with soft edges": (lambda m, n: content(soft(m)), MaskFiles(), ""),
    "a gray JPEG": (lambda m, n: encode_gray(m, 90), MaskFiles(), ""),
    "an RGB PNG": (lambda m, n: content(channels(m, None, None, None)), MaskFiles(), ""),
    "1 bit": (lambda m, n: content(m > 0), MaskFiles(), ""),
    "16 bits": (lambda m, n: content(m.astype(np.uint16) * 257), MaskFiles(), ""),
    "a black and white palette": (lambda m, n: content(palette(m // 255, BLACK_WHITE)), MaskFiles(), ""),
    "opaque": (lambda m, n: content(channels(m, None, None, None, 255)), MaskFiles(), ""),
    "0 and 1": (lambda m, n: content(m // 255), MaskFiles("binary"), "numbers (0, 1), foreground is all but 0"),
    "0 and 2": (lambda m, n: content(m // 255 * 2), MaskFiles("binary"), "numbers (0, 2)"),
    "0 and 200": (lambda m, n: content(m // 255 * np.uint8(200)), MaskFiles("binary"), "numbers (0, 200)"),
    "30 and 219": (
        lambda m, n: content(m // 255 * np.uint8(189) + np.uint8(30)),
        MaskFiles("binary", 219),
        "foreground is 219",
    ),
    "a JPEG up to 200": (lambda m, n: encode_gray(m // 255 * np.uint8(200), 90), MaskFiles("gray", 200), "up to 200"),
    "1 and 2": (lambda m, n: content(m // 255 + 1), MaskFiles("binary", 2), "foreground is 2"),
    "1 and 0": (lambda m, n: content(1 - m // 255), MaskFiles("binary", 0), "foreground is 0"),
    "a number of each": (
        lambda m, n: content(m // 255 * np.uint8(n + 1)),
        MaskFiles("binary"),
        "(0, 1, 2, 3, 4, 5, 6)",
    ),
    "16 bits of 0 and 255": (lambda m, n: content(m.astype(np.uint16)), MaskFiles("binary"), "numbers (0, 255)"),
    "16 bits of 0 and 1": (lambda m, n: content((m // 255).astype(np.uint16)), MaskFiles("binary"), "numbers (0, 1)"),
    "16 bits up to 255": (lambda m, n: content(soft(m).astype(np.uint16)), MaskFiles("gray", 255), "gray up to 255"),
    "gray up to 100": (
        lambda m, n: content((soft(m) * (100 / 255)).astype(np.uint8)),
        MaskFiles("gray", 100),
        "up to 100",
    ),
    "a JPEG up to 128": (lambda m, n: encode_gray(m // 2, 90), MaskFiles("gray", 127), "gray up to 127"),
    "a palette": (lambda m, n: content(palette(m // 255, VOC)), MaskFiles("palette"), "indices of a palette (0, 1)"),
    "a palette with a border": (
        lambda m, n: content(palette(ringed(m, 1 + n % 3), VOC)),
        MaskFiles("palette"),
        "indices of a palette (0, 1, 2, 3, 255), foreground is all but 0 and 255, a border",
    ),
    "labels with a border": (
        lambda m, n: content(ringed(m, 7)),
        MaskFiles("labels"),
        "numbers (0, 7, 255), foreground is",
    ),
    "class 2": (lambda m, n: content(labelled(m)), MaskFiles("binary", 2), "numbers (0, 1, 2), foreground is 2"),
    "alpha of white": (lambda m, n: content(channels(m, 255, 255, 255, None)), MaskFiles("alpha"), "the alpha channel"),
    "alpha of gray": (lambda m, n: content(channels(m, 9, None)), MaskFiles("alpha"), "the alpha channel"),
    "red": (lambda m, n: content(channels(m, None, 0, 0)), MaskFiles("red"), "the red channel"),
    "green with soft edges": (lambda m, n: content(channels(soft(m), 0, None, 0)), MaskFiles("green"), "the green"),
    "a blue JPEG": (lambda m, n: jpeg(np.asarray(channels(m, 0, 0, None)), 95), MaskFiles("blue"), "the blue channel"),
    "dark red": (lambda m, n: content(channels(m // 2, None, 0, 0)), MaskFiles("binary"), "foreground is all but 0"),
    "inverted": (lambda m, n: content(255 - m), MaskFiles("gray", 0), "gray, inverted (foreground is 0)"),
    "an inverted JPEG": (lambda m, n: encode_gray(255 - m, 90), MaskFiles("gray", 0), "gray, inverted"),
    "inverted alpha": (
        lambda m, n: content(channels(255 - m, 0, 0, 0, None)),
        MaskFiles("alpha", 0),
        "alpha channel, inv",
    ),
}


def sample_of(written: Callable[[U8, int], bytes], difference: bool = True) -> list[SampledMask]:
    """A sample whose |fg_bg - bg| is 40 levels in the foreground; or tells nothing."""
    return [
        SampledMask.of(f"{n}.png", written(truth(n), n), shrink(truth(n)) * (40 / 255) if difference else None)
        for n in range(SAMPLE)
    ]


@pytest.mark.parametrize("name", KINDS)
def test_every_encoding_is_recognised_and_read(name: str) -> None:
    written, expected, words = KINDS[name]
    files, why = recognise_mask_files(sample_of(written), "auto", None)
    assert files == expected
    assert words in why
    assert files.converts == bool(why)
    for n in range(SAMPLE):
        found = files.read(written(truth(n), n))[0].content if files.converts else written(truth(n), n)
        levels = decode_gray(found)
        assert ((levels >= 128) == (truth(n) >= 128)).mean() > 0.995
        if files.converts:
            assert set(np.unique(levels)) <= {0, 255} or "soft" in name or "up to" in name or "JPEG" in name


NEED_PICTURES = ("30 and 219", "1 and 2", "class 2", "labels with a border")
UNTOLD = [name for name, (_, files, _) in KINDS.items() if files.foreground != 0 and name not in NEED_PICTURES]


@pytest.mark.parametrize("name", UNTOLD)
def test_what_the_masks_tell_alone_needs_no_difference(name: str) -> None:
    written, expected, _ = KINDS[name]
    files, why = recognise_mask_files(sample_of(written, difference=False), "auto", None)
    assert files == expected
    assert "fits" not in why


def test_a_border_that_gray_would_take_for_the_mask_has_to_be_stated_where_nothing_tells() -> None:
    with pytest.raises(InputError, match=r"could be gray or numbers, .* do not tell: state it with --mask-encoding"):
        recognise_mask_files(sample_of(KINDS["labels with a border"][0], difference=False), "auto", None)


def test_numbers_of_which_one_may_be_the_foreground_have_to_be_stated_where_nothing_tells() -> None:
    sample = sample_of(KINDS["class 2"][0], difference=False)
    with pytest.raises(InputError, match=r"could be numbers, foreground is all but 0 or .* foreground is [12], and"):
        recognise_mask_files(sample, "auto", None)
    assert recognise_mask_files(sample, "auto", 2)[0] == MaskFiles("binary", 2)
    files, why = recognise_mask_files(sample, "binary", 2)
    assert (files, why) == (
        MaskFiles("binary", 2),
        "stated to be numbers, foreground is 2; stored as gray, 255 is foreground",
    )


def test_inverted_masks_can_be_stated_too() -> None:
    sample = sample_of(KINDS["inverted"][0], difference=False)
    assert recognise_mask_files(sample, "auto", None)[0] == MaskFiles(), "nothing tells"
    for encoding in ("auto", "gray"):
        files, _ = recognise_mask_files(sample, encoding, 0)
        levels = files.levels(sample[0].values)
        assert (levels == truth(0)).all()


MIXED: dict[str, tuple[str, str]] = {
    "alpha and gray": ("alpha of white", "gray"),
    "a palette and alpha": ("a palette", "alpha of white"),
    "both polarities": ("inverted", "gray"),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_encodings_are_refused_with_an_example_of_each(name: str) -> None:
    one, two = (KINDS[kind][0] for kind in MIXED[name])
    with pytest.raises(InputError, match=r"masks are encoded in different ways \(.*png.*png.*\): pack each kind"):
        recognise_mask_files(sample_of(lambda m, n: (one if n % 2 else two)(m, n)), "auto", None)


def test_what_is_no_mask_is_refused() -> None:
    photograph = np.random.default_rng(0).integers(70, 180, (SIZE, SIZE), np.uint8)
    with pytest.raises(InputError, match=r"the masks cannot be told \(0.png is of no kind that is known\): state it"):
        recognise_mask_files(sample_of(lambda m, n: content(photograph)), "auto", None)
    blank = sample_of(lambda m, n: content(0 * m))
    assert recognise_mask_files(blank, "auto", None) == (MaskFiles(), ""), "nothing to tell: plausibility says so"
    with pytest.raises(InputError, match=r"none of 6 sampled masks is as stated, 0\.png: the mask has no alpha"):
        recognise_mask_files(sample_of(KINDS["gray"][0]), "alpha", None)


def test_a_border_goes_to_the_nearer_side() -> None:
    row = np.array([[1, 1, 0, 0, 0, 0, 0, 0]], bool)
    border = np.array([[0, 0, 1, 1, 1, 0, 0, 0]], bool)
    assert share_border(row, border).tolist() == [[True, True, True, False, False, False, False, False]]
    assert not share_border(0 * row > 0, border).any()


def test_a_file_that_is_otherwise_is_bad() -> None:
    with pytest.raises(BadImage, match="the mask has no palette, as the others have: it has gray"):
        MaskFiles("palette").read(png(truth(0)))
    with pytest.raises(BadImage, match="does not decode"):
        mask_values(png(truth(0))[:-40])


def masks_of(shards: Path) -> dict[bytes, U8]:
    manifest = Manifest.load(shards)
    reader = ShardReader(shards, manifest, load_index(shards, manifest))
    return {key: decode_gray(reader.read(row)[1].tobytes()) for row, key in enumerate(reader.index["key"])}


def rewritten(source: Path, write_mask: Callable[[U8], bytes]) -> Path:
    """6 sets, their masks as PNG in another way."""
    write_sets(source, 2, 3)
    for number in range(6):
        path = source / set_paths(number // 3, number % 3, number)[1]
        mask = np.where(soft_disc(2000 + number)[..., 0] >= 128, 255, 0).astype(np.uint8)
        path.unlink()
        write(path.with_suffix(".png"), write_mask(mask))
    return source


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("verify", ["decode", "header"])
def test_masks_are_converted_at_packing(kind: str, verify: str, tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "source", lambda mask: content(mask // 255))
    source = {
        "folder": lambda: folder,
        "zip": lambda: write_zip(files_below(folder), tmp_path / "source.zip"),
        "tar": lambda: write_tar(files_below(folder), tmp_path / "source.tar.gz", "w:gz"),
    }[kind]()
    summary = pack(source, tmp_path / "shards", PackOptions(workers=1, verify=verify))
    assert summary.manifest.conversions == [f"masks: {summary.masks}"]
    assert "6 sampled masks are numbers (0, 1), foreground is all but 0" in summary.masks
    assert not summary.remarks
    assert not summary.problems
    found = masks_of(tmp_path / "shards")
    for number in range(6):
        mask = np.where(soft_disc(2000 + number)[..., 0] >= 128, 255, 0)
        assert (found[f"fg_{number % 3:03}_bg_{number // 3:03}_{number:06}".encode()] == mask).all()


def test_masks_that_need_no_conversion_leave_the_bytes_as_they_were(packed: Path) -> None:
    assert b"conversions" not in (packed / "manifest.json").read_bytes()
    assert b"warnings" not in (packed / "manifest.json").read_bytes()


def test_suspicious_masks_end_a_packing_or_are_a_warning(tmp_path: Path) -> None:
    source = rewritten(tmp_path / "source", lambda mask: content(255 - mask))
    with pytest.raises(InputError, match=r"6 masks look inverted.*--accept-suspicious"):
        pack(source, tmp_path / "shards", PackOptions(workers=1, mask_encoding="gray"))
    assert not (tmp_path / "shards").exists()
    manifest = pack(
        source, tmp_path / "shards", PackOptions(workers=1, mask_encoding="gray", accept_suspicious=True)
    ).manifest
    assert [line.split(" (")[0] for line in Manifest.load(tmp_path / "shards").warnings] == [
        "6 of 6 sampled sets look wrong: 6 masks look inverted: state --mask-foreground"
    ]
    assert manifest.conversions == []
    seen = pack(source, tmp_path / "seen", PackOptions(workers=1))
    assert "gray, inverted (foreground is 0), which fits |fg_bg - bg|" in seen.masks
    assert seen.manifest.warnings == []


@pytest.mark.parametrize("wrong", [{"mask_encoding": "hsv"}, {"mask_foreground": 70000}, {"fit": "squeeze"}])
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        PackOptions(**wrong)  # type: ignore[arg-type]
