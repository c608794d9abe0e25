"""The parts of the check in the order of their value, and how the time is dealt out among them."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

JPEG, PLANES = "jpeg", "planes"
_PICTURES, _SPEED, _COMMANDS = (f"benchmarks.gpu.{module}" for module in ("pictures", "speed", "commands"))


class Part(NamedTuple):
    """One part; it runs in a process of its own, in which its module's function of its name is called."""

    name: str
    least_sec: float
    """With less time than that it is not begun."""
    most_sec: float
    """After it the part is stopped; both are times of a machine with a fast GPU and 16 cores."""
    module: str
    needs: Sequence[str] = ()
    """Parts that make its data; they are begun before it where these are not there."""
    needs_gpu: bool = False
    """Whether there is nothing of it that a CPU could do."""


PARTS = (
    Part("picture", 5, 40, _PICTURES),
    Part(JPEG, 15, 120, _COMMANDS),
    Part(PLANES, 10, 60, _COMMANDS, (JPEG,)),
    Part("parity", 10, 60, _PICTURES, (JPEG, PLANES)),
    Part("soak", 20, 75, _PICTURES, (JPEG,)),
    Part("stalls", 30, 130, _SPEED, (JPEG, PLANES)),
    Part("decode", 15, 60, _SPEED, (JPEG, PLANES)),
    Part("throughput", 20, 150, _SPEED),
    Part("tests", 60, 170, _COMMANDS, needs_gpu=True),
    Part("original", 15, 50, _COMMANDS, (JPEG,)),
    Part("nccl", 20, 80, _COMMANDS, (JPEG,)),
    Part("end_to_end", 60, 1800, _COMMANDS),
)
"""Whether pictures are right and what that costs, how fast all of it is, the rest; the longest last."""
DATA = (JPEG, PLANES)
"""Parts that make data: begun where another needs them, or by name."""


def in_order(wanted: Collection[str], there: Collection[str], asked_sec: Mapping[str, float]) -> list[Part]:
    """The parts of these names, and before them those that make data which they need and which are not `there`.

    `asked_sec`, by names of parts, takes the place of their most, and of their least where that is more.
    """
    needed = set(wanted)
    for part in reversed(PARTS):
        if part.name in needed:
            needed |= set(part.needs) - set(there)
    most_sec = {part.name: asked_sec.get(part.name, part.most_sec) for part in PARTS}
    return [
        part._replace(least_sec=min(part.least_sec, most_sec[part.name]), most_sec=most_sec[part.name])
        for part in PARTS
        if part.name in needed
    ]


def limit_sec(part: Part, left_sec: float) -> float | None:
    """How long a part may run when so much time is left; None where it is not begun."""
    return None if left_sec < part.least_sec else min(part.most_sec, left_sec)
