import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError
from tools.benchmark.seat import Seat
from tools.peers.loaders import ours
from tools.peers.options import Loaded, LoadOptions

OPTIONS = LoadOptions(batch_size=32, size=16, device="cpu", workers=1)


class Wrong:
    """Our loader with a fault."""

    def __init__(self, shards: Path, options: LoadOptions, fault: str) -> None:
        self._batches, self._fault = ours(shards, options), fault

    def __iter__(self) -> Iterator[Loaded]:
        for batch in self._batches:
            masks, keys = batch.pictures["mask"], batch.keys()
            if self._fault == "paired by position":
                yield batch._replace(pictures={**batch.pictures, "mask": masks.roll(1, 0)})
            elif self._fault == "one set twice":
                yield batch._replace(keys=functools.partial(list, [keys[0], *keys[:-1]]))
            elif self._fault == "elsewhere":
                yield batch._replace(pictures={**batch.pictures, "mask": masks.to("meta")})
            else:
                yield batch._replace(pictures={**batch.pictures, "depth": 255 - batch.pictures["depth"]})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("paired by position", "^the pictures differ by"),
        ("one set twice", "^an epoch gave 100 sets, 96 of them different; the shards hold 100"),
        ("depth upside down", "^the pictures differ by"),
        ("elsewhere", "^its batches are on meta, not on cpu"),
    ],
)
def test_a_loader_that_is_wrong_is_refused(fault: str, message: str, packed: Path) -> None:
    with pytest.raises(InputError, match=message):
        Seat(functools.partial(Wrong, fault=fault), packed, packed, OPTIONS).judge()


def test_the_judgement_tells_what_a_set_is(packed: Path) -> None:
    judged = Seat(ours, packed, packed, OPTIONS).judge()
    assert judged.sets == 100
    assert (judged.background_pixels, judged.other_pixels) == (48 * 48, 3 * 48 * 48)
    assert judged.delivered_bytes == 4 * 16 * 16
    assert judged.difference.mean <= 0.6


class Counted:
    """A loader that counts its epochs, those that went to their end."""

    def __init__(self) -> None:
        self.epochs, self.closed = 0, False

    def __iter__(self) -> Iterator[Loaded]:
        yield from [Loaded(25, list, {})] * 4
        self.epochs += 1

    def close(self) -> None:
        self.closed = True


def test_a_loader_is_opened_timed_and_closed(packed: Path) -> None:
    made: list[Counted] = []

    def make(shards: Path, options: LoadOptions) -> Counted:
        made.append(Counted())
        return made[-1]

    seat = Seat(make, packed, packed, OPTIONS)
    assert seat.open() > 0
    run_in = 2 * 32 * (4 + 2)  # twice what may be ready: 384 sets are 16 of these batches
    assert [seat.warm(100).sets for _ in range(2)] == [100, 100]
    seat.close()
    assert [(one.epochs, one.closed) for one in made] == [(1 + -(-2 * (-(-run_in // 25) + 4) // 4), True)]
    assert seat.cold().sets == 75
    assert [(one.epochs, one.closed) for one in made[1:]] == [(1, True)]
    seat.close()
