import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline.workers
from pipeline.workers import Workers, drawn_ahead


def square(number: int) -> int:
    if number == 13:
        raise ValueError("13 is unlucky")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_come_through(workers: int) -> None:
    with Workers(workers) as pool:
        assert list(pool.map(square, range(10))) == [number**2 for number in range(10)]
        results = pool.map(square, range(10, 20))
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

    with Workers(2) as pool:
        assert next(pool.map(square, jobs())) == 400
    assert taken <= 6


def end_the_process(number: int) -> None:
    os._exit(number)


def test_a_killed_worker_is_one_line() -> None:
    with Workers(2) as pool, pytest.raises(ChildProcessError, match="a worker process was killed; is memory short"):
        list(pool.map(end_the_process, [9]))


def write_late(path: Path) -> None:
    if path.name == "0":
        while not path.with_name("1-begun").exists():
            time.sleep(0.01)
        raise ValueError("fails while another job is running")
    path.with_name(f"{path.name}-begun").touch()
    time.sleep(0.5)
    path.touch()


def test_an_error_comes_through_when_no_job_is_running_any_more(tmp_path: Path) -> None:
    with Workers(2) as pool:
        with pytest.raises(ValueError, match="fails while another"):
            list(pool.map(write_late, [tmp_path / str(number) for number in range(3)]))
        begun = {path.name.removesuffix("-begun") for path in tmp_path.glob("*-begun")}
        assert begun
        assert begun == {path.name for path in tmp_path.iterdir() if "-" not in path.name}


def test_items_are_drawn_a_bounded_number_ahead() -> None:
    drawn = list[int]()

    def source() -> Iterator[int]:
        for number in range(5):
            drawn.append(number)
            yield number

    ahead = drawn_ahead(source(), 2)
    assert drawn == []
    assert [(next(ahead), len(drawn)) for _ in range(5)] == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]
    assert list(drawn_ahead(range(3), 0)) == list(drawn_ahead(range(3), 9)) == [0, 1, 2]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EMFILE])
def test_without_shared_memory_one_process_does_all(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_semaphores(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pipeline.workers, "ProcessPoolExecutor", no_semaphores)
    if number == errno.EMFILE:
        with pytest.raises(OSError, match="Too many open files"), Workers(3):
            pass
        return
    with Workers(3) as workers:
        assert list(workers.map(abs, range(-3, 0))) == [3, 2, 1]
    [line] = caplog.messages
    assert line.endswith("one does all the work; give the machine a /dev/shm")
