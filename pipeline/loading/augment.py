"""Augmentation: a stage of its own on the batch, on its device; off for evaluation.

Every number is drawn by hashing (seed, epoch, row of the set), so that a set is changed alike in whatever batch and on
whatever rank and device it comes, and a resumed run sees what it would have seen. Nothing here waits for the device.
To the bit, on the CPU: no operation here that PyTorch might round differently in another place of a tensor (`lerp`,
`addcmul` and sums of floats might).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from pipeline.errors import InputError
from pipeline.loading.batch import Batch

LIMITS = {
    "mirror": (0, 1),
    "crop": (0.1, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "noise": (0, 255),
    "shift": (0, 1000),
}
OFF = {"mirror": 0, "crop": 1, "brightness": 0, "contrast": 0, "noise": 0, "shift": 0}
DRAWS = 14  # numbers a set: 6 for its geometry, 4 for the levels of bg, 4 for those of fg_bg
MID_GRAY = 127.5
AT_MOST = 3  # planes beside bg without that of holes: fg_bg, mask, depth
NOISE_STARTS = 1 << 19  # places in a field of noise where that of a picture may begin
CHUNK_PIXELS = 1 << 18  # of one plane, on the CPU: what lies between two operations then stays in its caches
GAMMA = 0x9E3779B97F4A7C15 - 2**64  # constants of SplitMix64, as int64
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Augmentation:
    """How much sets are changed. The defaults are mild: about what two shots of one fixed camera differ in."""

    mirror: float = 0.5
    """Probability that a set is mirrored, left to right."""
    crop: float = 0.8
    """Smallest share of the sides that is kept, at a random place, and resized back; both sides keep the same share."""
    brightness: float = 0.1
    """Levels are multiplied by 1 - this to 1 + this, those of bg and of fg_bg by numbers of their own."""
    contrast: float = 0.1
    """Distances from mid-gray are multiplied by 1 - this to 1 + this, bg's and fg_bg's by numbers of their own."""
    noise: float = 4.0
    """Largest standard deviation of the noise, in levels of 255; bg and fg_bg each have one of 0 to this."""
    shift: float = 1.0
    """Most pixels that bg is moved against fg_bg along each axis. Fractions too: no registration ends on whole ones."""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            if not least <= (value := getattr(self, name)) <= most:
                expected = f"expected {least} to {most} ({OFF[name]} turns it off)"
                raise InputError(f"augmentation: {name} is {value}, {expected}")


class Augmenter:
    """Augments the batches of a loader: mirror, crop, shift, contrast, brightness and noise, in this order."""

    def __init__(self, augmentation: Augmentation, seed: int, device: torch.device | str) -> None:
        """`seed` may be any integer; `device` is where the batches are."""
        self._by, self._seed, self._device = augmentation, seed, torch.device(device)
        self._off = asdict(augmentation) == OFF
        self._noise = torch.empty(2, 0, device=self._device)

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """Augment a batch into new memory; where nothing is on, or it is empty, it comes back itself.

        Mirror and crop are the same for all planes, shift moves bg alone, the rest changes the levels of bg and fg_bg.
        Mask and depth keep theirs: nearness is relative, and a crop brings nothing nearer to anything else.
        """
        if self._off or not len(batch.index):
            return batch
        planes = [batch.bg, batch.fg_bg, batch.mask] + ([] if batch.depth is None else [batch.depth])
        if batch.depth_valid is not None:
            planes.append(batch.depth_valid.to(torch.uint8))
        pixels = batch.bg[0].numel()
        if self._by.noise and self._noise.shape[1] < NOISE_STARTS + pixels:
            self._noise = noise_fields(self._seed, NOISE_STARTS + pixels, self._device)
        sets = len(batch.index) if self._device.type == "cuda" else max(1, CHUNK_PIXELS // pixels)
        chunks = zip(*(torch.split(plane, sets) for plane in planes), strict=True)
        drawn = torch.split(draw(batch.index, self._seed, epoch), sets, dim=1)
        augmented = [self._augment(*numbers_and_planes) for numbers_and_planes in zip(drawn, chunks, strict=True)]
        bg, fg_bg, mask, *rest = (torch.cat(parts) for parts in zip(*augmented, strict=True))
        depth = rest[0] if rest else None
        depth_valid = None if depth is None or batch.depth_valid is None else depth > 0
        return Batch(bg, fg_bg, mask, depth, batch.index, depth_valid)

    def _augment(self, draws: torch.Tensor, planes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Augment planes uint8 [N, 1, H, W], the first two of them bg and fg_bg, by draws float32 [DRAWS, N].

        After mask and depth there may be one that is 1 where depth was measured and 0 in its holes; it is not returned.
        """
        bg, *rest = self._move(draws[:6, :, None], planes)
        if len(rest) > AT_MOST:
            rest[-2:] = [_without_holes(*rest[-2:])]
        if self._by.brightness or self._by.contrast or self._by.noise:
            bg = self._expose(draws[6:10, :, None, None, None], bg.float(), self._noise[0])
            rest[0] = self._expose(draws[10:, :, None, None, None], rest[0].float(), self._noise[1])
        return [_to_uint8(plane) for plane in (bg, *rest)]

    def _move(self, draws: torch.Tensor, planes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Mirror, crop and shift planes [N, 1, H, W]: float32, or uint8 where they are not resampled."""
        by = self._by
        mirrored = draws[0] < by.mirror
        kept = 1 - (1 - by.crop) * draws[1]
        left, top, right, down = (2 * draws[2:] - 1).unbind()
        # Where a pixel of the result comes from: scale * (centre + offset) + middle, the picture's sides at -1 and 1.
        x_scale = torch.where(mirrored, -kept, kept)
        x_middle, y_middle = (1 - kept) * left, (1 - kept) * top
        height, width = planes[0].shape[2:]
        x, y = _centres(width, self._device), _centres(height, self._device)
        bg_x, bg_y = x + right * (2 * by.shift / width), y + down * (2 * by.shift / height)

        bg, rest = planes[:1], planes[1:]
        if by.crop < 1:
            rest = _sample(rest, x_scale * x + x_middle, kept * y + y_middle)
        else:
            rest = [_mirror(plane, mirrored) for plane in rest]
        if by.crop < 1 or by.shift:
            bg = _sample(bg, x_scale * bg_x + x_middle, kept * bg_y + y_middle)
        else:
            bg = [_mirror(plane, mirrored) for plane in bg]
        return [*bg, *rest]

    def _expose(self, draws: torch.Tensor, levels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Change contrast around mid-gray, then brightness, and add noise, by draws [4, N, 1, 1, 1]; in place.

        As NVIDIA DALI's `brightness_contrast` has it: brightness * (mid-gray + contrast * (level - mid-gray)).
        """
        by = self._by
        brightness = 1 + by.brightness * (2 * draws[0] - 1)
        contrast = 1 + by.contrast * (2 * draws[1] - 1)
        levels.mul_(brightness * contrast).add_(MID_GRAY * brightness * (1 - contrast))
        if by.noise:
            starts = (draws[3].flatten() * NOISE_STARTS).long()
            windows = noise.unfold(0, levels[0].numel(), 1)[starts].view_as(levels)
            levels.add_(windows.mul_(by.noise * (2 * draws[2] - 1)))  # the sign turns the noise over
        return levels


def draw(index: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """The numbers of the sets at rows int64 [N]: float32 [DRAWS, N], uniform in [0, 1), the same on every device.

    Each set has a SplitMix64 of its own, started at a hash of (seed, epoch, row).
    """
    starts = mix(index * GAMMA + _key(f"augment/{seed}/{epoch}"))
    steps = torch.arange(1, DRAWS + 1, device=index.device)[:, None] * GAMMA
    return ((mix(starts + steps) >> 40) & 0xFFFFFF).float() * 2.0**-24  # as many bits as float32 holds


def noise_fields(seed: int, length: int, device: torch.device) -> torch.Tensor:
    """Noise of mean 0 and deviation 1 for bg and for fg_bg, float32 [2, length], the same on every device.

    The sum of a hash's 8 bytes: integers, so that nothing can round differently. All but normal (kurtosis 2.85,
    nothing beyond 4.9 deviations).
    """
    numbers = torch.arange(2 * length, device=device).view(length, 2).t()
    hashes = mix(numbers * GAMMA + _key(f"noise/{seed}")).contiguous()
    sums = hashes.view(torch.uint8).view(2, length, 8).sum(dim=2)
    return (sums - 8 * MID_GRAY) / math.sqrt(8 * (256**2 - 1) / 12)


def mix(values: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64, as in `sampler`, int64 for uint64: products wrap, shifts bring in zeros."""
    values = (values ^ _shift_right(values, 30)) * MIX_1
    values = (values ^ _shift_right(values, 27)) * MIX_2
    return values ^ _shift_right(values, 31)


def _shift_right(values: torch.Tensor, bits: int) -> torch.Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _key(text: str) -> int:
    """An int64 for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _centres(pixels: int, device: torch.device) -> torch.Tensor:
    """The centres of a side's pixels, float32 [pixels], where its ends are -1 and 1."""
    return (2 * torch.arange(pixels, device=device) + 1) / pixels - 1


def _mirror(plane: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Mirror pictures uint8 [N, 1, H, W] where bool [N, 1] says so; `torch.where` takes five times as long on a CPU."""
    chosen = mirrored[:, :, None, None].to(torch.uint8) * 255
    return plane ^ ((plane ^ plane.flip(3)) & chosen)


def _sample(planes: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Pictures uint8 [N, 1, H, W] at x [N, W] and y [N, H], bilinearly: float32; the edge goes on beyond the picture.

    No antialiasing: a crop is enlarged, so that no pixel of it is skipped.
    """
    columns, rows = x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])
    grid = torch.stack((columns, rows), dim=1).permute(0, 2, 3, 1)  # planar: filled and read faster on the CPU
    levels = torch.cat(list(planes), dim=1).float()
    sampled = F.grid_sample(levels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return list(torch.split(sampled, 1, dim=1))


def _without_holes(depth: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Levels [N, 1, H, W] of depth with holes of 0, resampled, from the share of each pixel that was measured.

    As the decoder resizes them: the mean of what was measured, 1 or more, or a hole where that is less than half.
    """
    if not depth.is_floating_point():  # mirrored alone
        return depth
    return (depth / share.clamp(min=0.5)).clamp_(min=1) * (share >= 0.5)


def _to_uint8(levels: torch.Tensor) -> torch.Tensor:
    """Round and clamp levels [N, 1, H, W], which may be overwritten."""
    if levels.is_floating_point():
        levels = levels.add_(0.5).clamp_(0, 255)  # the conversion cuts fractions off; cheaper than to round
    return levels.to(torch.uint8, memory_format=torch.contiguous_format)
