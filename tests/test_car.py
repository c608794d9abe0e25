import numpy as np

from pipeline.synthetic.car import LONG_SIDE_PX, Car, draw_car

CARS = range(25)


def test_a_car_depends_on_seed_and_number_alone() -> None:
    one, again = draw_car(5, 3), draw_car(5, 3)
    assert one.rgba.tobytes() == again.rgba.tobytes()
    assert (one.width_m, one.height_m) == (again.width_m, again.height_m)
    assert len({draw_car(seed, car).rgba.tobytes() for seed in (5, 6) for car in range(10)}) == 20


def test_cars_have_the_size_of_cars() -> None:
    for number in CARS:
        car = draw_car(0, number)
        height, width, _ = car.rgba.shape
        assert max(height, width) == LONG_SIDE_PX
        assert 1.0 < car.height_m < 2.6  # seen from near, its far end looks lower or higher than it is
        assert 1.5 < car.width_m < 5.8
        assert abs(car.width_m / car.height_m - width / height) < 1e-9


def test_alpha_is_solid_inside_soft_at_the_edge_and_straight() -> None:
    for number in CARS:
        rgba = draw_car(1, number).rgba
        alpha = rgba[..., 3]
        assert rgba.dtype == np.uint8
        assert 0.4 < (alpha == 255).mean() < 0.97
        soft = (alpha > 0) & (alpha < 255)
        assert 0.005 < soft.mean() < 0.12
        assert not rgba[alpha == 0].any()
        # A soft pixel is by a transparent one or at the border: nothing inside is see-through.
        clear = np.pad(alpha < 255, 1, constant_values=True)
        shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        by_clear = np.sum([np.roll(clear, shift, (0, 1))[1:-1, 1:-1] for shift in shifts], axis=0)
        assert (by_clear[soft] > 1).all()


def test_wheels_touch_the_last_row_and_roofs_are_narrower_than_the_picture() -> None:
    for number in CARS:
        alpha = draw_car(2, number).rgba[..., 3]
        assert alpha[-1].max() >= 128
        assert alpha[0].max() > 0
        assert alpha[0, 0] == alpha[0, -1] == 0, "a car is no box"


def test_some_cars_are_about_as_bright_as_a_road() -> None:
    def gray(car: Car) -> float:
        solid = car.rgba[car.rgba[..., 3] == 255][:, :3]
        return float(solid.mean())

    levels = np.array([gray(draw_car(3, number)) for number in range(40)])
    assert ((levels > 60) & (levels < 125)).sum() > 10
    assert levels.min() < 60
    assert levels.max() > 150
