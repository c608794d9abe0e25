"""The same few image sets under every naming scheme in use."""

import csv
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pipeline.packing.known_layouts import SetCounts
from tests.samples import jpeg, overlay, smooth_picture, soft_disc, write

COUNTS = SetCounts(backgrounds=3, foregrounds=2, placements=2, mirrored=2)


class One(NamedTuple):
    """One of the sets, numbered through from 1 in the order of `COUNTS`."""

    n: int
    bg: int
    fg: int
    i: int
    """Which of those on the same background with the same foreground."""


SETS = [
    One(1 + i + 4 * (fg + COUNTS.foregrounds * bg), bg, fg, i)
    for bg in range(COUNTS.backgrounds)
    for fg in range(COUNTS.foregrounds)
    for i in range(4)
]


@cache
def picture(part: str, number: int) -> bytes:
    """The picture of a part of set n, or of background `number`."""
    if part == "fg_bg":
        return jpeg(overlay(SETS[number - 1].bg, number))
    if part == "mask":
        return jpeg(soft_disc(2000 + number))
    return jpeg(smooth_picture(number)) if part == "bg" else jpeg(smooth_picture(3000 + number, 1))


class Scheme(NamedTuple):
    """How a scheme names its files: functions of a set, and of a background."""

    bg: Callable[[int], str]
    fg_bg: Callable[[One], str]
    mask: Callable[[One], str]
    depth: Callable[[One], str] | None
    tells_fg: bool = True
    first_bg: int = 0
    counts: SetCounts | None = None

    def paths(self, one: One) -> dict[str, str]:
        """Of the parts of a set."""
        named = {"fg_bg": self.fg_bg(one), "mask": self.mask(one)}
        return named | ({"depth": self.depth(one)} if self.depth else {})

    def files(self) -> dict[str, bytes]:
        """All files, by path."""
        files = {self.bg(bg): picture("bg", bg) for bg in range(COUNTS.backgrounds)}
        for one in SETS:
            files |= {path: picture(part, one.n) for part, path in self.paths(one).items()}
        return files


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "numbered-bgfg": Scheme(
            lambda bg: f"bg/{bg}.jpg",
            lambda s: f"BgFg/bgfg{s.n}.jpg",
            lambda s: f"BgFgMask/bgfgmask{s.n}.jpg",
            None,
            counts=COUNTS,
        ),
        "fg-bg-id": Scheme(
            lambda bg: f"bg/bg_{bg:03}.jpg",
            lambda s: f"fg_bg/bg_{s.bg:03}/fg_{s.fg:03}_bg_{s.bg:03}_{s.n:06}.jpg",
            lambda s: f"fg_bg_mask/bg_{s.bg:03}/fg_{s.fg:03}_bg_{s.bg:03}_mask_{s.n:06}.jpg",
            lambda s: f"fg_bg/bg_{s.bg:03}/fg_{s.fg:03}_bg_{s.bg:03}_{s.n:06}_disp.jpeg",
        ),
        "bg-fg-id-flat": Scheme(
            lambda bg: f"bg/bg{bg:03}.jpeg",
            lambda s: f"bg_fg/bg{s.bg:03}_fg{s.fg:03}_{s.i:02}.jpeg",
            lambda s: f"bg_fg_mask/bg{s.bg:03}_fg{s.fg:03}_{s.i:02}_mask.jpeg",
            lambda s: f"bg_fg_depth_map/bg{s.bg:03}_fg{s.fg:03}_{s.i:02}_depth_map.jpeg",
        ),
        "bg-fg-id": Scheme(
            lambda bg: f"bg/bg_{bg:02}.jpg",
            lambda s: f"fg_bg/bg_{s.bg:02}/bg_{s.bg:02}_fg_{s.fg:02}_{s.i:02}.jpg",
            lambda s: f"fg_bg_masks/bg_{s.bg:02}/bg_{s.bg:02}_fg_{s.fg:02}_{s.i:02}.jpg",
            lambda s: f"fg_bg_depth/bg_{s.bg:02}/bg_{s.bg:02}_fg_{s.fg:02}_{s.i:02}.jpg",
        ),
        "bg-folders": Scheme(
            lambda bg: f"bg/bg_{bg:03}.jpg",
            lambda s: f"fg_bg/bg_{s.bg:03}/img_{s.n:04}.jpg",
            lambda s: f"fg_bg_mask/bg_{s.bg:03}/img_{s.n:04}.jpg",
            lambda s: f"fg_bg_depth/bg_{s.bg:03}/img_{s.n:04}.jpg",
            tells_fg=False,
        ),
        "numbered-image": Scheme(
            lambda bg: f"bg/bg_{bg + 1}.jpg",
            lambda s: f"image/fg_bg_{s.n}.jpg",
            lambda s: f"mask/fg_bg_mask_{s.n}.jpg",
            lambda s: f"depthmap/depth_{s.n}.jpg",
            tells_fg=False,
            first_bg=1,
            counts=COUNTS,
        ),
        "bg-fg-folders": Scheme(
            lambda bg: f"bg/bg{bg + 1}.jpg",
            lambda s: f"bg{s.bg + 1}/fg_{s.fg}/overlay/{s.i + 1}.jpg",
            lambda s: f"bg{s.bg + 1}/fg_{s.fg}/mask/{s.i + 1}.jpg",
            lambda s: f"bg{s.bg + 1}/fg_{s.fg}/depth/{s.i + 1}.jpg",
            first_bg=1,
        ),
    }
)


def write_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    for path, content in files.items():
        write(folder / path, content)
    return folder


def write_zip(files: Mapping[str, bytes], path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(files: Mapping[str, bytes], path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def set_list() -> tuple[dict[str, bytes], dict[str, dict[str, bytes]]]:
    """The CSV scheme: (files, members by archive)."""
    text = io.StringIO()
    table = csv.writer(text)
    parts = ["ImageName", "MaskName", "Depthname", "BGImageName"]
    table.writerow([*parts, "BaseImageFName", "DepthImageFName", "BGType", "BGImageFName"])
    archives: dict[str, dict[str, bytes]] = {"base.zip": {}, "depth.zip": {}, "streets.zip": {}}
    for one in SETS:
        name = f"{(one.n * 7919) % 10007:05x}_street{one.bg}.jpg"  # as good as random
        table.writerow((f"image_{name}", f"mask_{name}", f"depth_{name}", f"street{one.bg}.jpg",
                        "base.zip", "depth.zip", "street", "streets.zip"))  # fmt: skip
        archives["base.zip"] |= {
            f"base/image_{name}": picture("fg_bg", one.n),
            f"base/mask_{name}": picture("mask", one.n),
        }
        archives["depth.zip"][f"depth_{name}"] = picture("depth", one.n)
        archives["streets.zip"][f"street{one.bg}.jpg"] = picture("bg", one.bg)
    return {"sets.csv": text.getvalue().encode()}, archives
