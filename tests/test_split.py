import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.split import BACKGROUND_SALT, FOREGROUND_SALT, SPLITS, group, split_rows


def all_pairs(ids: int) -> tuple[np.ndarray, np.ndarray]:
    bg, fg = np.meshgrid(np.arange(ids, dtype=np.int32), np.arange(ids, dtype=np.int32))
    return bg.ravel(), fg.ravel()


@pytest.mark.parametrize(("ids", "held_out"), [(10, 1), (100, 10)])
def test_shares_are_exact_for_the_usual_numbers_of_ids(ids: int, held_out: int) -> None:
    bg, fg = all_pairs(ids)
    sizes = {split: len(split_rows(bg, fg, split)) for split in SPLITS}
    assert sizes == {"train": (ids - 2 * held_out) ** 2, "val": held_out**2, "test": held_out**2}


def test_nothing_evaluated_was_trained_on() -> None:
    bg, fg = all_pairs(200)
    ids = {split: (set(bg[rows := split_rows(bg, fg, split)]), set(fg[rows])) for split in SPLITS}
    for one, other in [("train", "val"), ("train", "test"), ("val", "test")]:
        assert not ids[one][0] & ids[other][0]
        assert not ids[one][1] & ids[other][1]


def test_an_id_keeps_its_group_as_the_data_grows() -> None:
    # Golden: whoever changes these lets networks be tested on what they were trained on.
    assert [i for i in range(30) if group(BACKGROUND_SALT, i) != "train"] == [5, 6, 12, 22, 23, 24, 25, 26]
    assert [i for i in range(30) if group(FOREGROUND_SALT, i) != "train"] == [3, 7, 18, 20, 21]


def test_an_unknown_foreground_leaves_the_choice_to_the_background() -> None:
    bg, fg = all_pairs(30)
    unknown = np.where(fg % 3 == 0, np.int32(-1), fg)
    for split in SPLITS:
        expected = [
            row
            for row in range(len(bg))
            if group(BACKGROUND_SALT, bg[row]) == split
            and (fg[row] % 3 == 0 or group(FOREGROUND_SALT, fg[row]) == split)
        ]
        assert split_rows(bg, unknown, split).tolist() == expected


def test_all_and_unknown_names() -> None:
    bg, fg = all_pairs(3)
    assert split_rows(bg, fg, "all").tolist() == list(range(9))
    with pytest.raises(InputError, match="no split called 'dev': expected one of train, val, test or all"):
        split_rows(bg, fg, "dev")
