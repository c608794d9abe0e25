import pytest

from tools.bench_loader import Setting, parse_grid, recommended
from tools.peers.options import LoadOptions


def rate(median: float, q1: float, q3: float) -> dict[str, float]:
    return {"median": median, "q1": q1, "q3": q3}


def test_a_grid_is_all_values_of_all_axes() -> None:
    settings = parse_grid(["threads=1,2", "prefetch=3", "batch-size=8,16"], "cpu")
    assert settings == [Setting(t, 3, b, 0.65) for t in (1, 2) for b in (8, 16)]
    loads = {setting.hw_decoder_load for setting in parse_grid([], "gpu")}
    assert loads == {0.5, 0.65, 0.8}
    assert {setting.hw_decoder_load for setting in parse_grid([], "cpu")} == {0.65}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1", "no axis called 'speed': expected some of threads, prefetch, batch-size, hw-decoder-load"),
        ("threads=many", "threads=many: expected numbers with commas, as in threads=1,2"),
        ("threads=", "threads=: expected numbers"),
        ("prefetch=0", "threads, prefetch and batch size are 1 or more"),
        ("hw-decoder-load=1.5", "hw-decoder-load is from 0 to 1"),
    ],
)
def test_a_wrong_grid_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_grid([text], "gpu")


def test_the_cheapest_within_the_spread_of_the_fastest_is_recommended() -> None:
    rates = {
        Setting(1, 1, 64, 0.65): rate(80, 79, 81),
        Setting(2, 4, 256, 0.65): rate(100, 95, 105),
        Setting(2, 2, 256, 0.65): rate(96, 90, 99),
        Setting(2, 2, 64, 0.65): rate(94, 94, 94),
        Setting(1, 4, 512, 0.65): rate(95, 90, 99),
    }
    assert recommended(rates) == Setting(1, 4, 512, 0.65)
    del rates[Setting(1, 4, 512, 0.65)]
    assert recommended(rates) == Setting(2, 2, 256, 0.65)


def test_settings_are_flags_and_options() -> None:
    setting = Setting(2, 3, 64, 0.5)
    assert setting.flags("cpu") == "--threads 2 --prefetch 3 --batch-size 64"
    assert setting.flags("gpu") == "--threads 2 --prefetch 3 --batch-size 64 --hw-decoder-load 0.5"
    options = setting.of(LoadOptions(8, 32, "cpu", 1))
    assert (options.workers, options.prefetch, options.batch_size, options.size) == (2, 3, 64, 32)
