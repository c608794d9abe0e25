"""Small image sets for tests, in the seed's layout."""

import io
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

S15 = Path(__file__).parent.parent.parent / "shared" / "data" / "s15"
SIZE = 48  # pixels


def smooth_picture(seed: int, channels: int = 3, size: int = SIZE) -> NDArray[np.uint8]:
    """A picture that JPEG keeps well: a few waves, told apart by seed; uint8 [size, size, channels]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6)) for _ in range(channels)]
    return np.rint(127.5 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def jpeg(picture: NDArray[np.uint8], quality: int = 90) -> bytes:
    gray = picture.shape[2] == 1
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality, "GRAY" if gray else "RGB", "Gray" if gray else "420"
    )
    return data


def png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
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
            for part, path in enumerate(set_paths(bg, fg, number)):
                write(source / path, jpeg(smooth_picture(1000 * (part + 1) + number, channels=1 if part else 3)))
    return source


def files_below(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
