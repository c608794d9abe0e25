"""The parts of the check, in the order in which they run."""

from typing import NamedTuple


class Part(NamedTuple):
    """One part; it runs in a process of its own, in which its module's function `measure` gets a `Context`."""

    name: str
    seconds: float
    """What it takes at most, on a GPU; after that it is stopped."""
    needs_gpu: bool = False
    """Whether there is nothing of it that a CPU could do."""
    resumable: bool = False
    """Whether it goes on where it was stopped: it may then begin with less time than it takes in all."""
    package: str = "tools.gpu_check"

    @property
    def module(self) -> str:
        """What it is imported by: of the part's name."""
        return f"{self.package}.{self.name}"


PARTS = (
    Part("tests", 180, needs_gpu=True),
    Part("agreement", 90),
    Part("soak", 150),
    Part("floor", 30),
    Part("rate", 240),
    Part("stalls", 180),
    Part("decode", 200),
    Part("nccl", 150),
    Part("original", 90),
    Part("whole", 1800, resumable=True),
)
"""What the claim rests on first: whether it is right, then how fast it is, the longest last."""
