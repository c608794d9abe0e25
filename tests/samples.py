"""Small image sets for tests, in the seed's layout."""

import io
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.format.depth import colour_map
from pipeline.format.index_rows import row_type
from pipeline.loading.sampler import Sampler
from pipeline.loading.split import Split
from pipeline.packing.options import PackOptions
from pipeline.packing.pack import pack
from pipeline.resume import COMPLETE

S15 = Path(__file__).parent.parent.parent / "shared" / "data" / "s15"
SIZE = 48  # pixels


def smooth_picture(seed: int, channels: int = 3, size: int = SIZE) -> NDArray[np.uint8]:
    """A picture that JPEG keeps well: a few waves, told apart by seed; uint8 [size, size, channels]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6)) for _ in range(channels)]
    return np.rint(127.5 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def soft_disc(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """A mask that JPEG keeps well: a disc with a soft edge, its place told apart by seed; uint8 [size, size, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    inside = rng.uniform(0.15, 0.28) - np.hypot(y - rng.uniform(0.35, 0.65), x - rng.uniform(0.35, 0.65))
    disc: NDArray[np.uint8] = np.rint(255 * np.clip(0.5 + 8 * inside, 0, 1)).astype(np.uint8)[..., None]
    return disc


def overlay(bg: int, number: int) -> NDArray[np.uint8]:
    """The overlay of a set of `write_sets`: a picture of its own, where its mask is, on its background."""
    alpha = soft_disc(2000 + number) / 255
    blended = alpha * smooth_picture(1000 + number) + (1 - alpha) * smooth_picture(bg)
    rounded: NDArray[np.uint8] = np.rint(blended).astype(np.uint8)
    return rounded


def street_depth(size: int = 128) -> NDArray[np.uint8]:
    """Nearness as streets have it: a rising ground, a far wall, boxes with sharp edges; uint8 [size, size]."""
    y, x = np.mgrid[0:size, 0:size] / size
    near: NDArray[np.float64] = np.where(y > 0.45, (y - 0.45) / 0.55, 0.1 * x)
    for left, top, side, value in ((0.1, 0.3, 0.2, 0.35), (0.55, 0.4, 0.3, 0.7), (0.4, 0.2, 0.08, 0.9)):
        near[(x >= left) & (x < left + side) & (y >= top) & (y < top + side)] = value
    levels: NDArray[np.uint8] = np.rint(255 * near).astype(np.uint8)
    return levels


def coloured(levels: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    """Depth levels, uint8 [H, W], in the colours of a map, uint8 [H, W, 3]; "gray" has three equal channels."""
    return np.rint(colour_map(encoding)[levels]).astype(np.uint8)


def jpeg(picture: NDArray[np.uint8], quality: int = 90) -> bytes:
    gray = picture.shape[2] == 1
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality, "GRAY" if gray else "RGB", "Gray" if gray else "420"
    )
    return data


def png(picture: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def npy(values: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def set_paths(bg: int, fg: int, number: int) -> list[str]:
    """Paths of fg_bg, mask and depth below the source."""
    name = f"fg_{fg:03}_bg_{bg:03}"
    return [
        f"fg_bg/bg_{bg:03}/{name}_{number:06}.jpg",
        f"fg_bg_mask/bg_{bg:03}/{name}_mask_{number:06}.jpg",
        f"fg_bg/bg_{bg:03}/{name}_{number:06}_disp.jpeg",
    ]


def write_sets(source: Path, backgrounds: int = 6, foregrounds: int = 5) -> Path:
    """One set for each pair of ids: backgrounds * foregrounds sets. Every picture differs from every other."""
    for bg in range(backgrounds):
        write(source / f"bg/bg_{bg:03}.jpg", jpeg(smooth_picture(bg)))
        for fg in range(foregrounds):
            number = bg * foregrounds + fg
            pictures = overlay(bg, number), soft_disc(2000 + number), smooth_picture(3000 + number, 1)
            for path, picture in zip(set_paths(bg, fg, number), pictures, strict=True):
                write(source / path, jpeg(picture))
    return source


def files_below(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by relative path, but for what is kept of a complete command."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def without_depth(source: Path, shards: Path) -> Path:
    """The sets of the fixture `packed`, packed without their depth."""
    pack(source, shards, PackOptions(sets_per_shard=16, workers=1, depth=False))
    return shards


def split_rows(backgrounds: NDArray[np.int32], foregrounds: NDArray[np.int32], split: str) -> NDArray[np.int64]:
    """Rows [N] of the index, whose columns these are, that belong to a split."""
    index = np.zeros(len(backgrounds), row_type(1))
    index["bg"], index["fg"] = backgrounds, foregrounds
    members = Split(index, [len(index)], split)
    return members.rows(Sampler(members.sizes, len(index), "", shuffle=False).batch(0, 0))
