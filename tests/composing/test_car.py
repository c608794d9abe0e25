import numpy as np

from pipeline.composing.synthetic.vehicles import draw_car, draw_paint

SUN = np.array([0.4, 0.7, -0.6])


def test_cars_are_no_boxes_and_stand_on_wheels() -> None:
    for number in range(25):
        rgba, _ = draw_car(np.random.default_rng((2, number)), SUN)
        alpha = rgba[..., 3]
        assert 0.4 < (alpha == 255).mean() < 0.97
        assert alpha[0, 0] == alpha[0, -1] == 0
        assert alpha[-1].max() >= 128
        tyres = rgba[-1, alpha[-1] == 255, :3]
        assert len(tyres) == 0 or tyres.max() < 40


def test_cars_are_turned_all_ways() -> None:
    shapes = [draw_car(np.random.default_rng((3, number)), SUN)[0].shape for number in range(40)]
    ratios = np.array([width / height for height, width, _ in shapes])
    assert (ratios < 1.5).sum() > 5
    assert (ratios > 2.0).sum() > 5


def test_paint_is_bright_enough_to_be_seen() -> None:
    paints = np.array([draw_paint(np.random.default_rng(number)) for number in range(50)])
    assert paints.min() >= 0.08 * 1.15 - 1e-9
    assert len(np.unique(paints, axis=0)) > 40
