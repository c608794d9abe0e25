import gc
import subprocess
import sys
import threading
from collections.abc import Generator

import pytest

from pipeline.loading.prefetch import BackgroundIterator


def numbers(end: int, drawn: list[int], closed: threading.Event) -> Generator[int, None, None]:
    try:
        for number in range(end):
            drawn.append(number)
            yield number
    finally:
        closed.set()


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "fgbg-ahead"}


def test_everything_comes_in_order_and_the_end_comes_again() -> None:
    closed = threading.Event()
    ahead = BackgroundIterator(numbers(50, [], closed), 3)
    assert list(ahead) == list(range(50))
    assert list(ahead) == []
    assert closed.wait(10)


def test_no_more_than_depth_items_wait() -> None:
    drawn: list[int] = []
    ahead = BackgroundIterator(numbers(50, drawn, threading.Event()), 3)
    for taken in range(10):
        assert next(ahead) == taken
        assert len(drawn) <= taken + 1 + 3
    ahead.close()
    assert len(drawn) <= 10 + 3


def test_it_draws_without_being_asked() -> None:
    third = threading.Event()

    def source() -> Generator[int, None, None]:
        yield 0
        yield 1
        third.set()
        yield 2

    ahead = BackgroundIterator(source(), 3)
    assert third.wait(10)
    ahead.close()


def test_what_the_source_raises_comes_through_after_what_it_gave() -> None:
    def source() -> Generator[int, None, None]:
        yield 1
        raise LookupError("lost")

    ahead = BackgroundIterator(source(), 5)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(LookupError, match="lost"):
            next(ahead)


@pytest.mark.parametrize("how", ["close", "close twice", "let go"])
def test_the_thread_ends_and_closes_the_source(how: str) -> None:
    others = threads()  # of loaders that other tests have let go, and nobody has collected yet
    closed = threading.Event()
    ahead = BackgroundIterator(numbers(10**9, [], closed), 2)
    assert next(ahead) == 0
    assert len(threads() - others) == 1
    if how != "let go":
        ahead.close()
    if how == "close twice":
        ahead.close()
    del ahead
    assert closed.is_set()
    assert threads() <= others


def test_letting_go_in_its_own_thread_does_not_wait_for_itself() -> None:
    closed = threading.Event()
    held: list[BackgroundIterator[int]] = []

    def source() -> Generator[int, None, None]:
        try:
            yield 0
            held.clear()  # as the collector might, which runs in any thread
            yield 1
        finally:
            closed.set()

    held.append(BackgroundIterator(source(), 1))
    next(held[0])
    assert closed.wait(10)
    gc.collect()


def test_a_process_may_end_without_closing() -> None:
    code = (
        "import itertools, time\n"
        "from pipeline.loading.prefetch import BackgroundIterator\n"
        "def source():\n"
        "    try:\n"
        "        yield from itertools.count()\n"
        "    finally:\n"
        "        print('closed', flush=True)\n"
        "ahead = BackgroundIterator(source(), 2)\n"
        "next(ahead)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("closed\n", "")
