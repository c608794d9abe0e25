"""Foregrounds with people and what is of their size: walkers, cyclists, motorcyclists, carts, and roadworks.

People are round limbs and balls; x runs from their front backwards. Every `draw_*` returns a picture with straight
alpha and its metres a pixel.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.composing.synthetic.brush import (
    F64,
    Brush,
    Drawn,
    paint_rim,
    paint_tyre,
    standing_brush,
    translate,
)
from pipeline.composing.synthetic.vehicles import random_paint

_CLOTHES = (  # display RGB
    *((0.12, 0.13, 0.16), (0.2, 0.25, 0.38), (0.35, 0.36, 0.38), (0.55, 0.5, 0.42), (0.85, 0.84, 0.8)),
    *((0.6, 0.14, 0.14), (0.18, 0.4, 0.3), (0.75, 0.6, 0.2), (0.45, 0.28, 0.45), (0.2, 0.45, 0.6)),
)
_SKINS = ((0.95, 0.76, 0.65), (0.85, 0.64, 0.5), (0.65, 0.45, 0.34), (0.45, 0.3, 0.22))
_HAIR = ((0.1, 0.08, 0.07), (0.25, 0.17, 0.11), (0.5, 0.36, 0.2), (0.55, 0.55, 0.55))
_BLACK, _WHITE = np.full(3, 0.1), np.full(3, 1.05)
_ORANGE, _RED = np.array([1.05, 0.42, 0.12]), np.array([0.9, 0.14, 0.12])


@dataclass(frozen=True)
class Outfit:
    """What a person wears, display RGB, and how tall they are."""

    jacket: F64
    trousers: F64
    shoes: F64
    skin: F64
    hair: F64
    height_m: float
    skirt: bool

    @property
    def scale(self) -> float:
        """Size relative to a person of 1.75 m, in whose measures limbs are given."""
        return self.height_m / 1.75


def random_outfit(rng: np.random.Generator) -> Outfit:
    """Clothes for one person."""

    def pick(colours: tuple[tuple[float, float, float], ...]) -> F64:
        return np.asarray(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.2) * 1.15

    height_m = float(rng.uniform(1.5, 1.92))
    dark = np.full(3, rng.uniform(0.08, 0.3))
    return Outfit(
        pick(_CLOTHES), pick(_CLOTHES[:6]), dark, pick(_SKINS), pick(_HAIR), height_m, bool(rng.random() < 0.15)
    )


def draw_people(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """One to three people who walk together."""
    count = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    yaw = float(rng.choice([rng.normal(90, 15), rng.normal(-90, 15), rng.uniform(-180, 180)]))
    brush = standing_brush(rng, yaw, to_sun, view_m=9.0)
    feet = []
    for k in range(count):
        position = np.array([rng.uniform(-0.2, 0.2), 0.0, (k - (count - 1) / 2) * rng.uniform(0.6, 0.75)])
        feet.append(_paint_walker(brush, rng, random_outfit(rng), position))
    return brush.render(np.concatenate(feet))


def _paint_walker(brush: Brush, rng: np.random.Generator, outfit: Outfit, position: F64) -> F64:
    """Someone walking or standing, the feet's middle at `position` on the ground; where the soles are [2, 3]."""
    scale, stride = outfit.scale, float(rng.uniform(0.0, 0.32))
    bob = 0.12 * stride

    def point(x: float, y: float, z: float) -> F64:
        return np.asarray(position + np.array([x, y, z]) * scale)

    hip, neck = point(0, 0.93 - bob, 0), point(-0.03, 1.47 - bob, 0)
    soles = []
    for side, swing in ((-1, stride), (1, -stride)):
        foot = point(swing, 0.08 + (0.06 if swing > 0.1 else 0.0), side * 0.095)
        _paint_leg(brush, outfit, hip + np.array([0, 0, side * 0.095]) * scale, foot, 0.05 + 0.2 * max(0.0, swing))
        soles.append(foot * [1, 0, 1])
        shoulder, hand = point(-0.02, 1.38 - bob, side * 0.185), point(-swing * 0.9, 0.86, side * 0.27)
        _paint_arm(brush, outfit, shoulder, hand, 0.05)
    if outfit.skirt:
        brush.limb(hip, point(0, 0.55, 0), (0.17 * scale, 0.24 * scale), outfit.jacket, nearer_m=0.12)
    _paint_torso(brush, outfit, hip, neck)
    if rng.random() < 0.3:  # a rucksack
        back = point(0.2, 1.1, 0)
        top = back + np.array([0, 0.22, 0]) * scale
        brush.limb(back, top, (0.14 * scale, 0.13 * scale), random_outfit(rng).jacket)
    elif rng.random() < 0.3:  # a bag
        x, y, z = point(0, 0.5, rng.choice([-0.3, 0.3]))
        brush.box((x - 0.16, y, z - 0.05), (x + 0.16, y + 0.3, z + 0.05), random_outfit(rng).trousers)
    return np.array(soles)


def _paint_torso(brush: Brush, outfit: Outfit, hip: F64, neck: F64, helmet: F64 | None = None) -> None:
    """Trunk, neck and head, leaning from hip to neck."""
    scale = outfit.scale
    radius = float(np.hypot(0.19 * brush.rotation[0, 2], 0.115 * brush.rotation[0, 0])) * scale  # as seen from here
    lean = (neck - hip) / np.linalg.norm(neck - hip)
    brush.limb(hip, hip + lean * 0.12 * scale, (0.8 * radius, 0.8 * radius), outfit.trousers, nearer_m=-0.05)
    chest = hip + lean * 0.03 * scale, neck - lean * 0.13 * scale
    brush.limb(*chest, (0.83 * radius, 0.95 * radius), outfit.jacket)
    head = neck + np.array([-0.03, 0.155, 0.0]) * scale
    brush.limb(neck - lean * 0.05, head, (0.055 * scale, 0.05 * scale), outfit.skin, 3, nearer_m=0.02)
    face = head + np.array([-0.02, -0.03, 0.0]) * scale, head + np.array([0.0, 0.03, 0.0]) * scale
    brush.limb(*face, (0.08 * scale, 0.095 * scale), outfit.skin, nearer_m=0.03)
    cover, radius = (outfit.hair, 0.1) if helmet is None else (helmet, 0.13)
    # A cap behind the face, and over the forehead: which of them is in front is a matter of the view.
    brush.ball(head + np.array([0.045, 0.04, 0.0]) * scale, radius * scale, cover, nearer_m=0.03)
    brush.ball(head + np.array([-0.005, 0.085, 0.0]) * scale, 0.9 * radius * scale, cover, nearer_m=0.02)


def _paint_arm(brush: Brush, outfit: Outfit, shoulder: F64, hand: F64, bend_m: float) -> None:
    """An arm to where the hand is; `bend_m` is how far the elbow is behind the straight line."""
    scale = outfit.scale
    elbow = (shoulder + hand) / 2 + np.array([bend_m, -0.5 * bend_m, 0])
    brush.limb(shoulder, elbow, (0.062 * scale, 0.05 * scale), outfit.jacket)
    brush.limb(elbow, hand, (0.05 * scale, 0.038 * scale), outfit.jacket)
    brush.ball(hand, 0.045 * scale, outfit.skin)


def _paint_leg(brush: Brush, outfit: Outfit, hip: F64, foot: F64, bend_m: float) -> None:
    """A leg to where the ankle is; `bend_m` is how far the knee is before the straight line."""
    scale = outfit.scale
    knee = (hip + foot) / 2 + np.array([-bend_m, 0.3 * bend_m, 0])
    brush.limb(hip, knee, (0.095 * scale, 0.068 * scale), outfit.trousers)
    brush.limb(knee, foot, (0.065 * scale, 0.045 * scale), outfit.trousers)
    heel, toe = foot + np.array([0.03, -0.02, 0]) * scale, foot + np.array([-0.17, -0.03, 0]) * scale
    brush.limb(heel, toe, (0.05 * scale, 0.04 * scale), outfit.shoes, 3)


def draw_bicycle(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A bicycle in motion, seen from anywhere."""
    brush = _cycle_brush(rng, to_sun)
    frame, outfit = random_paint(rng), random_outfit(rng)
    rear, front, radius = np.array([0.52, 0.35, 0.0]), np.array([-0.53, 0.35, 0.0]), 0.35
    for hub in (rear, front):
        _paint_hoop(brush, hub, radius - 0.022, 0.022, _BLACK)
        for k in range(10):
            angle = 2 * np.pi * k / 10
            brush.limb(hub, hub + radius * np.array([np.cos(angle), np.sin(angle), 0]), (0.006, 0.006), _BLACK * 4, 1)
    crank, seat, head = np.array([0.08, 0.3, 0.0]), np.array([0.2, 0.86, 0.0]), np.array([-0.36, 0.8, 0.0])
    handlebar = head + np.array([0.02, 0.2, 0.0])
    tubes = ((crank, seat), (crank, head), (seat, head), (rear, crank), (rear, seat), (front, head), (head, handlebar))
    for a, b in tubes:
        brush.limb(a, b, (0.02, 0.02), frame, 3)
    brush.crossbar(handlebar, 0.27, 0.017, _BLACK)
    brush.limb(translate(seat, 0.08, 0.06, 0), translate(seat, -0.14, 0.06, 0), (0.07, 0.03), _BLACK, 3)
    angle = float(rng.uniform(0, 2 * np.pi))
    pedals = [crank + 0.17 * side * np.array([np.cos(angle), np.sin(angle), 0]) for side in (-1, 1)]
    _paint_rider(brush, rng, outfit, translate(seat, 0.03, 0.08, 0), handlebar, pedals, 0.24)
    if rng.random() < 0.25:  # a basket, or a courier's box
        brush.box((0.3, 0.78, -0.2), (0.72, 1.18, 0.2), random_paint(rng))
    return brush.render(np.array([rear * [1, 0, 1], front * [1, 0, 1]]))


def draw_motorbike(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A motorbike or a scooter."""
    brush = _cycle_brush(rng, to_sun)
    paint, outfit, scooter = random_paint(rng), random_outfit(rng), bool(rng.random() < 0.45)
    radius, base = (0.26, 0.62) if scooter else (0.32, 0.72)
    rear, front = np.array([base, radius, 0.0]), np.array([-base, radius, 0.0])
    for hub in (rear, front):
        _paint_hoop(brush, hub, radius - 0.06, 0.06, _BLACK)
        _paint_hoop(brush, hub, 0.6 * radius, 0.03, np.full(3, 0.4))
        brush.crossbar(hub, 0.05, 0.5 * radius, np.full(3, 0.22))
    head, seat = np.array([-0.42, 0.86, 0.0]), np.array([0.3, 0.8, 0.0])
    handlebar = head + np.array([0.06, 0.16, 0.0])
    for side in (-0.08, 0.08):
        brush.limb(translate(front, 0, 0, side), translate(head, 0, 0, side), (0.03, 0.035), np.full(3, 0.55), 3)
    brush.crossbar(handlebar, 0.33, 0.022, _BLACK)
    brush.limb(translate(rear, 0.02, radius, 0), translate(seat, 0.25, -0.02, 0), (0.09, 0.1), paint)  # mudguard
    brush.limb(translate(seat, 0.3, 0.0, 0), translate(seat, -0.2, -0.02, 0), (0.1, 0.13), _BLACK)
    if scooter:
        brush.limb(np.array([0.35, 0.42, 0.0]), np.array([0.6, 0.5, 0.0]), (0.17, 0.15), paint)
        brush.box((-0.32, 0.24, -0.17), (0.3, 0.32, 0.17), paint * 0.8)
        brush.limb(np.array([-0.38, 0.3, 0.0]), np.array([-0.4, 0.88, 0.0]), (0.13, 0.15), paint)
        pedals = [np.array([-0.05, 0.4, side]) for side in (-0.13, 0.13)]
    else:
        brush.limb(np.array([-0.2, 0.42, 0.0]), np.array([0.25, 0.42, 0.0]), (0.17, 0.17), np.full(3, 0.25))
        brush.limb(np.array([-0.28, 0.88, 0.0]), np.array([0.12, 0.8, 0.0]), (0.15, 0.11), paint)
        brush.limb(np.array([0.1, 0.3, 0.17]), np.array([0.75, 0.36, 0.17]), (0.04, 0.055), np.full(3, 0.6), 3)
        pedals = [np.array([0.12, 0.36, side]) for side in (-0.16, 0.16)]
    brush.ball(translate(head, -0.1, 0.0, 0), 0.085, np.array([1.2, 1.2, 1.1]))
    brush.ball(np.array([base + 0.02, radius + 0.34, 0.0]), 0.05, np.array([0.9, 0.1, 0.1]))
    _paint_rider(brush, rng, outfit, translate(seat, 0, 0.12, 0), handlebar, pedals, 0.3, always_helmet=True)
    return brush.render(np.array([rear * [1, 0, 1], front * [1, 0, 1]]))


def _cycle_brush(rng: np.random.Generator, to_sun: F64) -> Brush:
    yaw = float(rng.choice([rng.normal(90, 12), rng.normal(-90, 12), rng.normal(0, 12), rng.uniform(-180, 180)]))
    return standing_brush(rng, yaw, to_sun, view_m=9.0)


def _paint_hoop(brush: Brush, hub: F64, radius: float, thickness: float, rgb: F64) -> None:
    """A tyre of round section, a piece at a time."""
    angle = np.linspace(0, 2 * np.pi, 25)
    points = hub + radius * np.column_stack([np.cos(angle), np.sin(angle), np.zeros(25)])
    for k in range(24):
        brush.limb(points[k], points[k + 1], (thickness, thickness), rgb, 1)


def _paint_rider(
    brush: Brush,
    rng: np.random.Generator,
    outfit: Outfit,
    hip: F64,
    handlebar: F64,
    pedals: list[F64],
    bend_m: float,
    always_helmet: bool = False,
) -> None:
    """Someone seated at `hip`, hands on the handlebar, feet on the pedals; `bend_m` is that of the knees."""
    lean_rad = float(rng.uniform(0.1, 0.5))
    neck = hip + 0.55 * outfit.scale * np.array([-np.sin(lean_rad), np.cos(lean_rad), 0.0])
    helmet = random_paint(rng) if always_helmet or rng.random() < 0.5 else None
    for side, pedal in zip((-1, 1), pedals, strict=True):
        foot = translate(pedal, 0, 0.06, 0.1 * side if abs(float(pedal[2])) < 0.05 else 0.0)
        _paint_leg(brush, outfit, translate(hip, 0, 0, 0.1 * side), foot, bend_m)
        shoulder, hand = translate(neck, 0, -0.07, 0.19 * side), translate(handlebar, 0.03, 0.02, 0.25 * side)
        _paint_arm(brush, outfit, shoulder, hand, 0.1)
    _paint_torso(brush, outfit, hip, neck, helmet)


def draw_cart(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A hand cart with a load of boxes, with or without whoever pushes it."""
    brush = standing_brush(rng, float(rng.uniform(-180, 180)), to_sun, view_m=10.0)
    half, length, deck = float(rng.uniform(0.32, 0.45)), float(rng.uniform(0.45, 0.7)), float(rng.uniform(0.3, 0.55))
    paint, outfit = random_paint(rng), random_outfit(rng)
    brush.box((-length, deck - 0.08, -half), (length, deck, half), np.full(3, 0.3))
    if rng.random() < 0.5:
        brush.box((-length, deck, -half), (length, deck + float(rng.uniform(0.5, 0.8)), half), paint)
    else:
        for k in range(int(rng.integers(2, 6))):
            x, z = (-0.5 * length, 0.5 * length)[k % 2], (-0.45 * half, 0.45 * half)[k // 2 % 2]
            y, size = deck + 0.34 * (k // 4), float(rng.uniform(0.12, 0.19))
            rgb = np.array([0.72, 0.56, 0.38]) if rng.random() < 0.6 else random_paint(rng)
            brush.box((x - 1.3 * size, y, z - size), (x + 1.3 * size, y + 0.33, z + size), rgb)
    radius, feet = min(0.2, 0.55 * deck), []
    for x in (-0.7 * length, 0.7 * length):
        for side_m in (-half - 0.02, half + 0.02):
            brush.sort_depth_m = brush.depth_m(np.array([x, radius, 1.15 * side_m]))
            paint_tyre(brush, x, side_m, radius, 0.06)
            paint_rim(brush, x, side_m, radius, 6, np.full(3, 0.6))
            feet.append((x, 0.0, side_m))
    grip = np.array([length + 0.3, 1.0, 0.0])
    for side_m in (-0.8 * half, 0.8 * half):
        shaft = np.array([length, deck, side_m]), translate(grip, 0, 0, side_m)
        brush.limb(*shaft, (0.02, 0.02), np.full(3, 0.25), 3)
    brush.crossbar(grip, half, 0.022, np.full(3, 0.15))
    if rng.random() < 0.6:
        soles = _paint_walker(brush, rng, outfit, np.array([length + 0.75, 0.0, 0.0]))
        feet += [(float(x), 0.0, float(z)) for x, _, z in soles]
    return brush.render(np.array(feet))


def draw_barrier(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """A red and white barrier, often between cones."""
    brush = standing_brush(rng, 90 + rng.normal(0, 25), to_sun, view_m=8.0)
    half, feet = float(rng.uniform(0.6, 1.2)), []
    rgb = _RED if rng.random() < 0.7 else _ORANGE
    for z in (-0.8 * half, 0.8 * half):
        brush.box((-0.28, 0.0, z - 0.07), (0.28, 0.09, z + 0.07), np.full(3, 0.2))
        brush.box((-0.03, 0.09, z - 0.03), (0.03, 1.0, z + 0.03), np.full(3, 0.75))
        feet += [(x, 0.0, z + side) for x in (-0.28, 0.28) for side in (-0.07, 0.07)]
    count = 2 * int(half / 0.2) + 1
    for y in (0.8, 0.45) if rng.random() < 0.6 else (0.75,):
        for k in range(count):
            a, b = ((2 * (k + edge) / count - 1) * half for edge in (0, 1))
            brush.box((-0.05, y, a), (-0.02, y + 0.24, b), _WHITE if k % 2 else rgb)
            brush.box((0.02, y, a), (0.05, y + 0.24, b), _WHITE if k % 2 else rgb)
    for side in (-1, 1):
        if rng.random() < 0.4:
            x_m, z_m = rng.uniform(-0.3, 0.3), side * (half + rng.uniform(0.3, 0.8))
            feet += _paint_cone(brush, np.array([x_m, 0.0, z_m]), 0.75)
        if rng.random() < 0.4:
            brush.ball(np.array([0.0, 1.08, side * 0.8 * half]), 0.09, np.array([1.1, 0.75, 0.1]))
    return brush.render(np.array(feet))


def draw_cones(rng: np.random.Generator, to_sun: F64) -> Drawn:
    """One to four traffic cones in a row."""
    brush = standing_brush(rng, 90 + rng.normal(0, 25), to_sun, view_m=8.0)
    size, count, step = float(rng.uniform(0.5, 1.0)), int(rng.integers(1, 5)), float(rng.uniform(0.7, 1.2))
    slant = float(rng.uniform(-0.5, 0.5))
    feet = []
    for z in ((k - (count - 1) / 2) * step for k in range(count)):
        feet += _paint_cone(brush, np.array([slant * z, 0.0, z]), size)
    return brush.render(np.array(feet))


def _paint_cone(brush: Brush, position: F64, height: float) -> list[tuple[float, float, float]]:
    """A striped cone, facet by facet, on its square foot; the foot's corners."""
    x, _, z = position
    foot = 0.25 * height
    brush.box((x - foot, 0.0, z - foot), (x + foot, 0.05 * height, z + foot), _ORANGE * 0.75)
    angle = np.linspace(0, 2 * np.pi, 17)
    circle = np.column_stack([np.cos(angle), np.zeros(17), np.sin(angle)])
    edges = (0.05, 0.35, 0.55, 0.7, 0.82, 1)
    for k, (low, high) in enumerate(pairwise(edges)):
        lower, upper = (position + circle * (0.2 - 0.165 * y) * height + [0, y * height, 0] for y in (low, high))
        brush.sort_depth_m = brush.depth_m(position) - 0.1 * low
        for facet in range(16):
            corners = [lower[facet], upper[facet], upper[facet + 1], lower[facet + 1]]
            brush.paint(np.array(corners), _WHITE if k % 2 else _ORANGE)
    return [(x + a, 0.0, z + b) for a in (-foot, foot) for b in (-foot, foot)]
