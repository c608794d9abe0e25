"""The parts of an image set, and its name."""

PARTS = ("fg_bg", "mask", "depth")  # what a shard stores for each set, in this order; `bg` is stored once
UNKNOWN = -1  # a foreground that nobody has told


def set_key(fg: int | None, bg: int, number: int) -> str:
    """The name of a set in shards and logs; `fg` is None or `UNKNOWN` where the foreground is not known."""
    if fg is None or fg == UNKNOWN:
        return f"fg_unknown_bg_{bg:03}_{number:06}"
    return f"fg_{fg:03}_bg_{bg:03}_{number:06}"
