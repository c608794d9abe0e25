"""People: limbs, trunk, head and clothes, walking or seated on something."""

from dataclasses import dataclass

import numpy as np

from pipeline.composing.synthetic.brush import F64, Brush, Drawn

_CLOTHES = (  # display RGB
    *((0.12, 0.13, 0.16), (0.2, 0.25, 0.38), (0.35, 0.36, 0.38), (0.55, 0.5, 0.42), (0.85, 0.84, 0.8)),
    *((0.6, 0.14, 0.14), (0.18, 0.4, 0.3), (0.75, 0.6, 0.2), (0.45, 0.28, 0.45), (0.2, 0.45, 0.6)),
)
_SKINS = ((0.95, 0.76, 0.65), (0.85, 0.64, 0.5), (0.65, 0.45, 0.34), (0.45, 0.3, 0.22))
_HAIR = ((0.1, 0.08, 0.07), (0.25, 0.17, 0.11), (0.5, 0.36, 0.2), (0.55, 0.55, 0.55))


@dataclass(frozen=True)
class Dress:
    """What a person wears, display RGB, and how tall they are."""

    jacket: F64
    trousers: F64
    shoes: F64
    skin: F64
    hair: F64
    height_m: float
    skirt: bool


def draw_dress(rng: np.random.Generator) -> Dress:
    """Clothes for one person."""

    def one(colours: tuple[tuple[float, float, float], ...]) -> F64:
        return np.asarray(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.2) * 1.15

    height_m = float(rng.uniform(1.5, 1.92))
    dark = np.full(3, rng.uniform(0.08, 0.3))
    return Dress(one(_CLOTHES), one(_CLOTHES[:6]), dark, one(_SKINS), one(_HAIR), height_m, bool(rng.random() < 0.15))


def paint_trunk(brush: Brush, dress: Dress, hip: F64, neck: F64, helmet: F64 | None = None) -> None:
    """Trunk, neck and head, leaning from hip to neck."""
    size = dress.height_m / 1.75
    broad = float(np.hypot(0.19 * brush.turn[0, 2], 0.115 * brush.turn[0, 0])) * size  # as seen from here
    lean = (neck - hip) / np.linalg.norm(neck - hip)
    brush.limb(np.array([hip, hip + lean * 0.12 * size]), (0.8 * broad, 0.8 * broad), dress.trousers, nearer_m=-0.05)
    brush.limb(
        np.array([hip + lean * 0.03 * size, neck - lean * 0.13 * size]), (0.83 * broad, 0.95 * broad), dress.jacket
    )
    head = neck + np.array([-0.03, 0.155, 0.0]) * size
    brush.limb(np.array([neck - lean * 0.05, head]), (0.055 * size, 0.05 * size), dress.skin, 3, nearer_m=0.02)
    face = head + np.array([-0.02, -0.03, 0.0]) * size, head + np.array([0.0, 0.03, 0.0]) * size
    brush.limb(np.array(face), (0.08 * size, 0.095 * size), dress.skin, nearer_m=0.03)
    cover, radius = (dress.hair, 0.1) if helmet is None else (helmet, 0.13)
    # A cap behind the face, and over the forehead: which of them is in front is a matter of the view.
    brush.ball(head + np.array([0.045, 0.04, 0.0]) * size, radius * size, cover, nearer_m=0.03)
    brush.ball(head + np.array([-0.005, 0.085, 0.0]) * size, 0.9 * radius * size, cover, nearer_m=0.02)


def paint_arm(brush: Brush, dress: Dress, shoulder: F64, hand: F64, bent_m: float) -> None:
    """An arm to where the hand is; `bent_m` is how far the elbow is behind the straight line."""
    size = dress.height_m / 1.75
    elbow = (shoulder + hand) / 2 + np.array([bent_m, -0.5 * bent_m, 0])
    brush.limb(np.array([shoulder, elbow]), (0.062 * size, 0.05 * size), dress.jacket)
    brush.limb(np.array([elbow, hand]), (0.05 * size, 0.038 * size), dress.jacket)
    brush.ball(hand, 0.045 * size, dress.skin)


def paint_leg(brush: Brush, dress: Dress, hip: F64, foot: F64, bent_m: float) -> None:
    """A leg to where the ankle is; `bent_m` is how far the knee is before the straight line."""
    size = dress.height_m / 1.75
    knee = (hip + foot) / 2 + np.array([-bent_m, 0.3 * bent_m, 0])
    brush.limb(np.array([hip, knee]), (0.095 * size, 0.068 * size), dress.trousers)
    brush.limb(np.array([knee, foot]), (0.065 * size, 0.045 * size), dress.trousers)
    toe = foot + np.array([-0.17, -0.03, 0]) * size
    brush.limb(np.array([foot + np.array([0.03, -0.02, 0]) * size, toe]), (0.05 * size, 0.04 * size), dress.shoes, 3)


def paint_walker(brush: Brush, rng: np.random.Generator, dress: Dress, at: F64) -> F64:
    """Someone walking or standing with the feet's middle at `at`, on the ground; where the soles are [2, 3]."""
    size, stride = dress.height_m / 1.75, float(rng.uniform(0.0, 0.32))
    bob = 0.12 * stride
    hip, neck = at + np.array([0, 0.93 - bob, 0]) * size, at + np.array([-0.03, 1.47 - bob, 0]) * size
    soles = []
    for side, swing in ((-1, stride), (1, -stride)):
        lift = 0.06 if swing > 0.1 else 0.0
        foot = at + np.array([swing, 0.08 + lift, side * 0.095]) * size
        paint_leg(brush, dress, hip + np.array([0, 0, side * 0.095]) * size, foot, 0.05 + 0.2 * max(0.0, swing))
        soles.append(foot * [1, 0, 1])
        hand = at + np.array([-swing * 0.9, 0.86, side * 0.27]) * size
        paint_arm(brush, dress, at + np.array([-0.02, 1.38 - bob, side * 0.185]) * size, hand, 0.05)
    if dress.skirt:
        brush.limb(
            np.array([hip, at + np.array([0, 0.55, 0]) * size]), (0.17 * size, 0.24 * size), dress.jacket, nearer_m=0.12
        )
    paint_trunk(brush, dress, hip, neck)
    if rng.random() < 0.3:  # a rucksack
        back = at + np.array([0.2, 1.1, 0]) * size
        brush.limb(
            np.array([back, back + np.array([0, 0.22, 0]) * size]), (0.14 * size, 0.13 * size), draw_dress(rng).jacket
        )
    elif rng.random() < 0.3:  # a bag
        x, y, z = at + np.array([0, 0.5, rng.choice([-0.3, 0.3])]) * size
        brush.block((x - 0.16, y, z - 0.05), (x + 0.16, y + 0.3, z + 0.05), draw_dress(rng).trousers)
    return np.array(soles)


def draw_people(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """One to three people who walk together."""
    count = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    yaw = float(rng.choice([rng.normal(90, 15), rng.normal(-90, 15), rng.uniform(-180, 180)]))
    brush = Brush(np.radians(yaw), float(rng.uniform(1.4, 2.2)), 0.0, to_sun, view_m=9.0)
    feet = []
    for k in range(count):
        at = np.array([rng.uniform(-0.2, 0.2), 0.0, (k - (count - 1) / 2) * rng.uniform(0.6, 0.75)])
        feet.append(paint_walker(brush, rng, draw_dress(rng), at))
    return brush.picture(np.concatenate(feet))
