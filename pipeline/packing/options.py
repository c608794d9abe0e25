"""The settings of packing, checked in one place."""

from dataclasses import dataclass

import numpy as np

from pipeline.engines import LOCAL, require_engine
from pipeline.errors import InputError
from pipeline.format.depth import CONVERTED, ENCODINGS, NEAR
from pipeline.format.images import VERIFY
from pipeline.format.manifest import CODECS
from pipeline.packing.depth_holes import parse_invalid
from pipeline.packing.mask_files import ENCODINGS as MASK_ENCODINGS
from pipeline.packing.mask_files import MAX_VALUE
from pipeline.packing.shapes import FITS


@dataclass(frozen=True)
class PackOptions:
    """How to pack. Raises `InputError` for a value out of range."""

    seed: int = 0
    """Of the shuffle that makes any one shard a fair sample of the whole."""
    sets_per_shard: int = 1000
    """Sets in each tar but the last."""
    depth: bool = True
    """Whether the sets have depth; without, depth maps that are there are not packed."""
    depth_encoding: str = "auto"
    """"auto" looks at a sample; else one of `depth.ENCODINGS` or `depth.CONVERTED`."""
    depth_near: str = "bright"
    """The near end of what depth files hold: "bright" (large values) or "dark"."""
    codec: str = "jpeg"
    """How pictures are stored: one of `manifest.CODECS`."""
    size: int = 128
    """Height and width of planes, pixels; of no effect on "jpeg"."""
    verify: str = "decode"
    """How each picture is checked: "decode" or "header" (see `images.check_image`)."""
    workers: int | None = None
    """Processes; None: one a core, of the cluster's with an engine that is one. Bytes do not depend on it."""
    engine: str = LOCAL
    """Where they are: one of `engines.ENGINES`."""
    depth_range: tuple[float, float] | None = None
    """(low, high): one scale for all .npy and 16-bit depth, in their units; else .npy are scaled each by itself."""
    depth_per_image: bool = False
    """Whether 16-bit depth, too, is scaled each picture by itself, and not over the whole 16 bits."""
    depth_percentiles: tuple[float, float] | None = None
    """(low, high): depth is scaled as by `depth_per_image`, between these percentiles of its values."""
    depth_invalid: str = "auto"
    """What of depth is no measurement: one of `depth_holes.WORDS`, or a number (see `depth_holes.find_holes`)."""
    mask_encoding: str = "auto"
    """How mask files say what is foreground: "auto" looks at a sample; else one of `mask_files.ENCODINGS`."""
    mask_foreground: int | None = None
    """The value of masks that means foreground, 0 to 65535; None: see `mask_files.MaskFiles`."""
    fit: str = "refuse"
    """What to do with backgrounds and depth of another shape than their overlays': one of `shapes.FITS`."""
    accept_suspicious: bool = False
    """Whether to go on where most of the sampled sets look wrong (see `plausibility`), with a warning."""
    strict: bool = False
    """Whether any problem at all ends the packing."""
    follow_links: bool = False
    """Whether links in folders are followed out of them."""

    def __post_init__(self) -> None:
        require_engine(self.engine)
        if self.sets_per_shard < 1 or (self.workers is not None and self.workers < 1):
            raise InputError(f"{self.sets_per_shard} sets a shard, {self.workers} workers: both must be 1 or more")
        if self.codec not in CODECS or self.size < 1:
            got = f"codec {self.codec}, size {self.size}"
            raise InputError(f"{got}: expected one of {', '.join(CODECS)}, and 1 pixel or more")
        if self.verify not in VERIFY:
            raise InputError(f"verify {self.verify!r}: expected one of {', '.join(VERIFY)}")
        if self.depth_encoding not in ("auto", *ENCODINGS, *CONVERTED) or self.depth_near not in NEAR:
            expected = f"{', '.join((*ENCODINGS, *CONVERTED))} and {', '.join(NEAR)}"
            raise InputError(f"depth {self.depth_encoding}, near {self.depth_near}: expected one each of {expected}")
        if self.mask_encoding not in ("auto", *MASK_ENCODINGS) or self.fit not in FITS:
            expected = f"one each of auto, {', '.join(MASK_ENCODINGS)} and {', '.join(FITS)}"
            raise InputError(f"mask encoding {self.mask_encoding}, fit {self.fit}: expected {expected}")
        if not 0 <= (self.mask_foreground or 0) <= MAX_VALUE:
            raise InputError(f"mask foreground {self.mask_foreground}: expected a value of pixels, 0 to {MAX_VALUE}")
        low, high = self.depth_range or (0.0, 1.0)
        if not -np.inf < low < high < np.inf:
            got = f"depth range {low:g} {high:g}"
            raise InputError(f"{got}: expected the low end, then the high one; which of them is near says --depth-near")
        if self.depth_range and (self.depth_per_image or self.depth_percentiles):
            raise InputError("depth is scaled by one range or each picture by itself: choose one")
        low, high = self.depth_percentiles or (0.0, 100.0)
        if not 0 <= low < high <= 100:
            raise InputError(f"depth percentiles {low:g} {high:g}: expected the low one, then the high one, 0 to 100")
        parse_invalid(self.depth_invalid)
