"""Schemes: the layouts in use, as people who made such sets left them on disk."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.packing.formulas import Formula
from pipeline.packing.layouts import Layout, Template


class Counts(NamedTuple):
    """How many of each went into sets that were numbered from 1 in this order, the last fastest."""

    backgrounds: int = 100
    foregrounds: int = 100
    placements: int = 20
    mirrored: int = 2

    @property
    def sets(self) -> int:
        """All of them."""
        return self.backgrounds * self.foregrounds * self.placements * self.mirrored

    @classmethod
    def parse(cls, text: str) -> "Counts":
        """From `100x100x20x2`; raise `InputError` for anything else."""
        counts = [int(count) if count.isdecimal() else 0 for count in text.split("x")]
        if len(counts) != 4 or 0 in counts:
            raise InputError(
                f"counts {text!r}: expected BACKGROUNDSxFOREGROUNDSxPLACEMENTSxMIRRORED, for instance 100x100x20x2"
            )
        return cls(*counts)


BACKGROUND = Template("bg/*{bg}")
NOT_PACKED = (
    Template("fg/*"),
    Template("*", extension=r"\.(?:csv|json)"),  # beside the sets: labels, sources, how depth was made
)


def _layout(name: str, overlay: str, mask: str, depth: str) -> Layout:
    parts = {"depth": depth, "fg_bg": overlay, "mask": mask}
    return Layout(name, {**{part: Template(text) for part, text in parts.items()}, "bg": BACKGROUND}, NOT_PACKED)


# The original S15 work, as its depth run left it on disk.
SEED_DEPTH_RUN = Layout(
    "seed-depth-run",
    {
        "depth": (
            Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}_disp", extension=r"\.npy"),  # the picture is made of it
            Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}_disp"),
        ),
        "fg_bg": Template("fg_bg/bg_{bg}/fg_{fg}_bg_{bg}_{id}"),
        "mask": Template("fg_bg_mask/bg_{bg}/fg_{fg}_bg_{bg}_mask_{id}"),
        "bg": BACKGROUND,
    },
    NOT_PACKED,
)


def _seed_overlays(counts: Counts, assumed: int) -> Layout:
    """The original's overlays, before its depth run: numbered through, in the order of `Counts`."""
    names = counts._asdict()
    return Layout(
        "seed-overlays",
        {"fg_bg": Template("BgFg/bgfg{n}"), "mask": Template("BgFgMask/bgfgmask{n}"), "bg": BACKGROUND},
        NOT_PACKED,
        {
            "bg": Formula("(n - 1) // (foregrounds * placements * mirrored)", names),
            "fg": Formula("(n - 1) // (placements * mirrored) % foregrounds", names),
            "id": Formula("n"),
        },
        assumed,
    )


def _deepjyoti(counts: Counts, assumed: int) -> Layout:
    return Layout(
        "deepjyoti",
        {
            "fg_bg": Template("image/fg_bg_{n}"),
            "mask": Template("mask/fg_bg_mask_{n}"),
            "depth": Template("depthmap/depth_{n}"),
            "bg": BACKGROUND,
        },
        NOT_PACKED,
        {"bg": Formula("ceil(n / (foregrounds * placements * mirrored))", counts._asdict()), "id": Formula("n")},
        assumed,
    )


_NAMED = (
    SEED_DEPTH_RUN,
    _layout(
        "modest",
        "bg_fg/bg{bg}_fg{fg}_{id}",
        "bg_fg_mask/bg{bg}_fg{fg}_{id}_mask",
        "bg_fg_depth_map/bg{bg}_fg{fg}_{id}_depth_map",
    ),
    _layout(
        "uday96",
        "fg_bg/bg_{bg}/bg_{bg}_fg_{fg}_{id}",
        "fg_bg_masks/bg_{bg}/bg_{bg}_fg_{fg}_{id}",
        "fg_bg_depth/bg_{bg}/bg_{bg}_fg_{fg}_{id}",
    ),
    _layout("akshat", "fg_bg/bg_{bg}/img_{id}", "fg_bg_mask/bg_{bg}/img_{id}", "fg_bg_depth/bg_{bg}/img_{id}"),
    _layout(
        "rohitrnath",
        "bg{bg}/fg_{fg}/overlay/{id}",
        "bg{bg}/fg_{fg}/mask/{id}",
        "bg{bg}/fg_{fg}/depth/{id}",
    ),
)
_NUMBERED: Mapping[str, Callable[[Counts, int], Layout]] = {"seed-overlays": _seed_overlays, "deepjyoti": _deepjyoti}
SCHEMES = (*(layout.name for layout in _NAMED), *_NUMBERED)


def schemes(counts: Counts | None = None) -> list[Layout]:
    """All layouts that are known by name; `counts` state what went into those that only number their sets.

    Without, these assume the original's counts (see `Layout.assumed`).
    """
    default = Counts()
    return [*_NAMED, *(make(counts or default, 0 if counts else default.sets) for make in _NUMBERED.values())]


def scheme(name: str, counts: Counts | None = None) -> Layout:
    """The layout of that name; raise `InputError` if there is none."""
    for layout in schemes(counts):
        if layout.name == name:
            return layout
    raise InputError(f"no layout called {name!r}: expected one of {', '.join(SCHEMES)}, or a .toml or .csv file")
