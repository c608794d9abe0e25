import numpy as np
import torch
from PIL import Image

from pipeline.format.depth import scalar_of_colours
from tests.samples import smooth_picture
from train.pictures import DEPTH_COLOURS, GAP, TILE, TITLE, depth_colours, side_by_side
from train.predict import at_size


def test_planes_are_resized_in_float_as_pillow_does_it() -> None:
    planes = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    for height, width in ((75, 50), (20, 90), (32, 32)):
        mask, depth = at_size(planes, (height, width))
        assert depth is not None
        expected = [np.asarray(Image.fromarray(plane.numpy()).resize((width, height), 2)) for plane in planes]
        assert mask.dtype == np.uint8
        assert depth.dtype == np.uint16
        assert np.abs(mask - expected[0] * 255).max() < 0.51
        assert np.abs(depth - expected[1] * 65535).max() < 0.6


def test_certain_is_the_end_of_the_scale() -> None:
    mask, depth = at_size(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), (1, 2))
    assert depth is not None
    assert (mask.tolist(), depth.tolist()) == ([[0, 255]], [[65535, 0]])
    assert at_size(torch.zeros(1, 2, 2), (3, 3)).depth is None


def test_colours_of_depth_read_back_to_its_eight_bits() -> None:
    depth = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = scalar_of_colours(depth_colours(depth), DEPTH_COLOURS)
    assert np.abs(found - depth / 257).max() < 4  # in 64 levels a colour channel, the dark end of magma is coarse


def test_pictures_stand_side_by_side_in_their_own_shape() -> None:
    picture = np.full((100, 200, 3), 200, np.uint8)
    picture[:, 100:] = 10
    sheet = np.asarray(side_by_side({"bg": picture, "mask": picture[..., 0]}))
    assert sheet.shape == (TITLE + TILE // 2 + GAP, GAP + 2 * (TILE + GAP), 3)
    for column in range(2):
        left = GAP + column * (TILE + GAP)
        tile = sheet[TITLE : TITLE + TILE // 2, left : left + TILE]
        assert (tile[:, : TILE // 2 - 4] == 200).all()
        assert (tile[:, TILE // 2 + 4 :] == 10).all()
        assert sheet[:TITLE, left : left + TILE].min() < 100, "no title"


def test_narrow_pictures_leave_room_for_their_titles() -> None:
    pictures = {"bg": smooth_picture(0, 1)[:, :2, 0], "depth (near = bright)": smooth_picture(0, 1)[:, :2, 0]}
    assert side_by_side(pictures).width >= 2 * TILE // 2
