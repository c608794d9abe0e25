from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.workers import map_in_order


def square(number: int) -> int:
    if number == 13:
        raise ValueError("13 is unlucky")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_come_through(workers: int) -> None:
    assert list(map_in_order(square, range(10), workers)) == [number**2 for number in range(10)]
    results = map_in_order(square, range(10, 20), workers)
    assert [next(results) for _ in range(3)] == [100, 121, 144]
    with pytest.raises(ValueError, match="13 is unlucky"):
        next(results)


def test_jobs_are_taken_only_a_few_ahead() -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for number in range(20, 1000):
            taken += 1
            yield number

    with closing(map_in_order(square, jobs(), workers=2)) as results:
        assert next(results) == 400
    assert taken <= 6
