"""Ray casting in numpy, all rays at once: what each ray hits, how far away, and which light is kept from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipeline.composing.synthetic.scene import (
    F32,
    F64,
    MAX_FACES,
    PAVEMENT_M,
    SIZE_PX,
    Kind,
    Scene,
    Solid,
    f32,
)

# Surface ids. Solid s has FIRST_FACE + MAX_FACES * s + its face; balls follow.
SKY, ROAD, WALK, KERB, FIRST_FACE = -1, 0, 1, 2, 4
NEAR_M = 0.3  # nearest depth that is looked at
HORIZON_M = 20_000.0  # ground farther along the road than this is sky, so that no coordinate overflows
NOISE_PX = 256  # side of the noise tile, texels
MAP_PX_M = 10  # resolution of the shadow maps, pixels a metre
MAP_HALF_WIDTH_M, MAP_LENGTH_M = 24, 72
_SKYLINE_STEPS_M = 4  # steps a metre of z
MAX_LAMPS = 8  # so many lamps, the nearest, light the street
Rays = tuple[F32, F32, F32]
Normal = tuple[F32 | float, F32 | float, F32 | float]
Window = tuple[slice, slice]
_CUBE = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


def make_noise_tile(rng: np.random.Generator) -> F32:
    """Periodic noise [NOISE_PX, NOISE_PX], mean 0, deviation 1, amplitude falling with frequency, like weathering."""
    f = np.fft.fftfreq(NOISE_PX)[:, None] ** 2 + np.fft.rfftfreq(NOISE_PX)[None, :] ** 2
    f[0, 0] = np.inf
    tile = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(NOISE_PX, NOISE_PX))) / np.sqrt(f))
    return f32(tile / tile.std())


def texture(noise: F32, u: F32, v: F32) -> F32:
    """The noise tile at texel coordinates (nearest texel; the supersampled rays smooth it)."""
    row, column = v.astype(np.int32) & (NOISE_PX - 1), u.astype(np.int32) & (NOISE_PX - 1)
    return noise.ravel().take(row * NOISE_PX + column)


def bilinear_texture(noise: F32, u: F32, v: F32) -> F32:
    """The noise tile at texel coordinates, bilinear: for what is magnified, such as clouds."""
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    low = texture(noise, u0, v0) * (1 - fu) + texture(noise, u0 + 1, v0) * fu
    high = texture(noise, u0, v0 + 1) * (1 - fu) + texture(noise, u0 + 1, v0 + 1) * fu
    return f32(low * (1 - fv) + high * fv)


def leaf_texture(noise: F32, x: F32, y: F32, z: F32) -> F32:
    """The noise tile laid through space twice, so that it is streaked on no side of a ball."""
    return 0.7 * (texture(noise, x * 14, y * 14) + texture(noise, z * 14 + 77, x * 9 - y * 11))


def first_ball_id(scene: Scene) -> int:
    """The surface id of the first leaf ball."""
    return FIRST_FACE + MAX_FACES * len(scene.solids)


def cast_rays(scene: Scene, scale: int) -> tuple[F32, NDArray[np.int16]]:
    """The nearest surface along every ray: z-depth in metres (sky: inf) and surface id, both [H, W] * scale."""
    rays = scene.ground.camera.rays(scale)
    depth, surface = _cast_ground(scene, rays)
    balls = scene.balls.astype(np.float64)
    hulls = [*(solid.corners for solid in scene.solids), *(ball[:3] + _CUBE * ball[3] for ball in balls)]
    windows = _windows(scene, hulls, scale) if hulls else []
    for k in sorted(range(len(hulls)), key=lambda k: windows[k][1]):  # the nearest first: they hide others
        window, nearest = windows[k]
        if not depth[window].size or depth[window].max() < nearest:
            continue
        x, y, z = (axis[window] for axis in rays)
        if k < len(scene.solids):
            t, face = _hit_solid(scene, (x, y, z), scene.solids[k])
            label = face + np.int16(FIRST_FACE + MAX_FACES * k)
        else:
            t = _hit_ball(scene, (x, y, z), balls[k - len(scene.solids)])
            label = np.full(t.shape, first_ball_id(scene) + k - len(scene.solids), np.int16)
        nearer = t < depth[window]
        np.copyto(depth[window], t, where=nearer)
        np.copyto(surface[window], label, where=nearer)
    return depth, surface


def _windows(scene: Scene, hulls: list[F64], scale: int) -> list[tuple[Window, float]]:
    """For each convex hull of points [N, 3]: rows and columns of the rays that can see it, and its least depth."""
    camera = scene.ground.camera
    starts = np.cumsum([0, *(len(hull) for hull in hulls)])
    points = (np.concatenate(hulls) - [camera.x_m, camera.height_m, 0.0]) @ camera.axes().T
    nearest = np.minimum.reduceat(points[:, 2], starts[:-1])
    slopes = points[:, :2] / np.maximum(points[:, 2:], NEAR_M)
    low, high = (extreme.reduceat(slopes, starts[:-1], axis=0) for extreme in (np.minimum, np.maximum))
    for k in np.flatnonzero(nearest < NEAR_M):
        low[k], high[k] = _clipped_slopes(points[starts[k] : starts[k + 1]])
    first, last = ((slope * camera.focal_px + SIZE_PX / 2) * scale for slope in (low, high))
    first, last = (np.clip(edge, 0, SIZE_PX * scale).astype(int) for edge in (first - 1, last + 2))
    bounds = zip(first.tolist(), last.tolist(), nearest.tolist(), strict=True)
    return [((slice(y0, y1), slice(x0, x1)), max(near, NEAR_M)) for (x0, y0), (x1, y1), near in bounds]


def _clipped_slopes(points: F64) -> tuple[F64, F64]:
    """Least and greatest slopes of the part of a hull [N, 3], in camera axes, that is beyond the plane at `NEAR_M`."""
    near = points[:, 2] < NEAR_M
    front, back = points[~near], points[near]
    if not len(front):
        return np.zeros(2), np.zeros(2)
    # The plane cuts the hull where it cuts lines between its points.
    share = (NEAR_M - back[:, None, 2]) / (front[None, :, 2] - back[:, None, 2])
    cut = back[:, None] + (front[None] - back[:, None]) * share[..., None]
    slopes = np.concatenate([front[:, :2] / front[:, 2:], cut[..., :2].reshape(-1, 2) / NEAR_M])
    return slopes.min(0), slopes.max(0)


def _cast_ground(scene: Scene, rays: Rays) -> tuple[F32, NDArray[np.int16]]:
    """Road, kerbs and what lies behind them, which is higher by `PAVEMENT_M`."""
    ground, (dx, dy, dz) = scene.ground, rays
    eye_x, eye_y = np.float32(ground.camera.x_m), np.float32(ground.camera.height_m)
    # Parametrized by z, the way along the road: every ray goes on in z, as the camera never looks far aside.
    climb, drift = dy / dz, dx / dz
    left, right = scene.kerb_m
    road_z = ground.elevation.intersect(ground.camera.height_m, climb)
    walk_z = ground.elevation.intersect(ground.camera.height_m - PAVEMENT_M, climb)
    with np.errstate(invalid="ignore"):
        x = eye_x + drift * walk_z - ground.centre_x(walk_z)
        on_walk = (x < -left) | (x > right)
    z = np.where(on_walk, walk_z, road_z)
    z[z > HORIZON_M] = np.inf
    surface = np.where(np.isfinite(z), np.where(on_walk, WALK, ROAD), SKY).astype(np.int16)
    for side, kerb in ((-1, left), (1, right)):
        # The kerb's face is met where the ray leaves the road: mirrored to the left side, a line meeting a curve.
        kerb_z = ground.centre_x.mirrored(side).intersect(kerb - side * ground.camera.x_m, -side * drift)
        with np.errstate(invalid="ignore"):
            height = eye_y + climb * kerb_z - ground.elevation(kerb_z)
            hit = (kerb_z < z) & (height >= 0) & (height <= np.float32(PAVEMENT_M))
        z = np.where(hit, kerb_z, z)
        surface[hit] = KERB + (side > 0)
    return (z / dz).astype(np.float32), surface


def _hit_solid(scene: Scene, rays: Rays, solid: Solid) -> tuple[F32, NDArray[np.int16]]:
    """Depth at which each ray enters a solid (inf: it does not) and through which face.

    A ray is inside between the last plane that it enters and the first that it leaves.
    """
    (x, y, z), camera = rays, scene.ground.camera
    c, s = np.cos(solid.yaw_rad), np.sin(solid.yaw_rad)
    eye_x, eye_z = camera.x_m - solid.x_m, -solid.z_m
    eye = np.array([c * eye_x - s * eye_z, camera.height_m, s * eye_x + c * eye_z])
    c32, s32 = np.float32(c), np.float32(s)
    local = (c32 * x - s32 * z, y, s32 * x + c32 * z) if s else rays
    near, far = np.zeros_like(y), np.full_like(y, np.inf)
    face = np.zeros(y.shape, np.int16)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for k, (*normal, offset) in enumerate(solid.planes):
            outside = float(eye @ normal) - offset  # signed distance from this plane to the eye
            speeds = [axis * np.float32(n) for axis, n in zip(local, normal, strict=True) if n]
            t: F32 = np.float32(-outside) / (speeds[0] if len(speeds) == 1 else speeds[0] + speeds[1])
            t[t < 0] = np.inf
            if outside > 0:
                face[t > near] = k
                np.maximum(near, t, out=near)
            else:
                np.minimum(far, t, out=far)
    near[(near >= far) | (near == 0)] = np.inf
    return near, face


def _hit_ball(scene: Scene, rays: Rays, ball: F64) -> F32:
    """Depth of a leaf ball's near side, or inf: towards its rim, holes in the leaves let rays through."""
    (x, y, z), r, camera = rays, np.float32(ball[3]), scene.ground.camera
    ox, oy, oz = (np.float32(v) for v in (camera.x_m - ball[0], camera.height_m - ball[1], -ball[2]))
    a, half_b, c = x * x + y * y + z * z, x * ox + y * oy + z * oz, ox * ox + oy * oy + oz * oz - r * r
    discriminant = half_b * half_b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    t: F32 = ((-half_b - root) / a).astype(np.float32)
    facing = root / (np.sqrt(a) * r)  # cosine between ray and surface: 1 in the middle, 0 at the rim
    holes = leaf_texture(scene.noise, ox + t * x, oy + t * y, oz + t * z)
    np.copyto(t, np.float32(np.inf), where=(discriminant <= 0) | (facing <= 0.38 + 0.28 * holes) | (t <= 0))
    return t


@dataclass(frozen=True)
class Hits:
    """N points that rays have hit; all arrays are [N], world coordinates in metres."""

    scene: Scene
    surface: NDArray[np.intp]
    depth_m: F32
    ray: Rays
    point_m: tuple[F32, F32, F32]
    width_m: F32  # of a ray there, across its direction


class SolidHits:
    """Hits of solids, in the solids' own coordinates: u, v, and y over the solid's ground, all in metres, [N]."""

    def __init__(self, hits: Hits) -> None:
        self.hits, self.scene, self.width_m = hits, hits.scene, hits.width_m
        self.solids, self.noise = self.scene.solids, self.scene.noise
        self.number, self.face = np.divmod(hits.surface - FIRST_FACE, MAX_FACES)
        table = [(s.x_m, s.z_m, np.cos(s.yaw_rad), np.sin(s.yaw_rad), s.base_m) for s in self.solids]
        x, z, c, s, base = self.per_hit(table)
        dx, dz = hits.point_m[0] - x, hits.point_m[2] - z
        self.u, self.y, self.v = c * dx - s * dz, hits.point_m[1] - base, s * dx + c * dz

    def per_hit(self, table: Sequence[tuple[float, ...]]) -> F32:
        """Rows of a table, one of K values for each solid, as float32 [K, N] for the hits."""
        return np.ascontiguousarray(f32(table).T)[:, self.number]

    @cached_property
    def rgb(self) -> F32:
        """Linear colours of the solids, [3, N]."""
        return self.per_hit([solid.rgb for solid in self.solids])

    @cached_property
    def normal(self) -> tuple[F32, F32, F32]:
        """Outward normals in world axes."""
        table = np.zeros((len(self.solids), MAX_FACES, 3))
        for k, solid in enumerate(self.solids):
            table[k, : len(solid.normals)] = solid.normals
        x, y, z = np.ascontiguousarray(f32(table.reshape(-1, 3)).T)[:, self.number * MAX_FACES + self.face]
        return x, y, z


class Shadows:
    """Shadows of houses on everything, from the height of their row, and of all else on the ground, from maps."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.sun = scene, scene.light.to_sun.astype(float)
        self.front_m, self.roof_m = self._skyline()
        sunny = float(scene.light.sun_rgb[0]) > 0.5
        casters = [solid for solid in scene.solids if solid.kind != Kind.WALL] if sunny else []
        self.sun_map = self._map(1, casters, sunny, self.sun[[0, 2]] / self.sun[1])
        standing = [solid for solid in scene.solids if solid.kind in (Kind.BODY, Kind.HEDGE, Kind.WHEEL)]
        self.sky_map = self._map(4, standing, False, np.zeros(2))

    def _skyline(self) -> tuple[float, F32]:
        """Distance of the houses' fronts on the sun's side from the road's centre line, and their height along z."""
        fronts, roof = [], np.zeros(1024, np.float32)
        for solid in self.scene.solids:
            reach = np.abs(solid.corners[:, 0] - self.scene.ground.centre_x(solid.corners[:, 2]))
            on_sun_side = (solid.x_m - self.scene.ground.centre_x(solid.z_m)) * self.sun[0] > 0
            if solid.kind == Kind.WALL and on_sun_side:
                fronts.append(reach.min())
                z = solid.corners[:, 2]
                low, high = (max(0, int((end + 20) * _SKYLINE_STEPS_M)) for end in (z.min(), z.max()))
                roof[low:high] = max(y for _, y in solid.profile) - solid.base_m
        return float(np.median(fronts)) if fronts else 50.0, roof

    def _map(self, blur_px: int, solids: list[Solid], balls: bool, slant: F64) -> Image.Image:
        """Shadows on the ground seen from above, 255 where dark; `slant`: metres aside (x, z) a metre of height."""
        image = Image.new("L", (2 * MAP_HALF_WIDTH_M * MAP_PX_M, MAP_LENGTH_M * MAP_PX_M))
        draw = ImageDraw.Draw(image)
        for solid in solids:
            height = np.maximum(solid.corners[:, 1] - solid.base_m, 0)[:, None]
            corners_px = (solid.corners[:, [0, 2]] - height * slant + [MAP_HALF_WIDTH_M, 0]) * MAP_PX_M
            n = len(solid.profile)
            faces = [list(range(n)), list(range(n, 2 * n))]
            faces += [[k, (k + 1) % n, n + (k + 1) % n, n + k] for k in range(n)]
            for face in faces:
                draw.polygon([(float(x), float(z)) for x, z in corners_px[face]], fill=255)
        for x, y, z, r in self.scene.balls.astype(float) if balls else ():
            height_m = y - self.scene.ground.elevation(z)
            cx, cz = (np.array([x, z]) - height_m * slant + [MAP_HALF_WIDTH_M, 0]) * MAP_PX_M
            radius_px = 0.9 * r * MAP_PX_M
            draw.ellipse([cx - radius_px, cz - radius_px, cx + radius_px, cz + radius_px], fill=225)
        return image.filter(ImageFilter.BoxBlur(blur_px)) if solids or balls else image

    def from_houses(self, x: F32, y: F32, z: F32) -> F32:
        """1 where the row of houses on the sun's side hides the sun, 0 where it does not; soft over half a metre."""
        ground, sun = self.scene.ground, self.sun.astype(np.float32)
        x, y = x - ground.centre_x(z), y - ground.elevation(z)
        distance = np.maximum((np.sign(sun[0]) * np.float32(self.front_m) - x) / sun[0], 0)
        step = np.clip((z + distance * sun[2] + 20) * _SKYLINE_STEPS_M, 0, 1023).astype(np.int32)
        shade: F32 = np.clip((self.roof_m[step] - y - distance * sun[1]) * 2 + 0.5, 0, 1) * (distance > 0.3)
        return shade

    def on_ground(self, x: F32, z: F32) -> tuple[F32, F32]:
        """Shares of sunlight and of sky light that objects standing in the street keep from its ground."""
        column, row = ((x + MAP_HALF_WIDTH_M) * MAP_PX_M).astype(np.int32), (z * MAP_PX_M).astype(np.int32)
        width, length = 2 * MAP_HALF_WIDTH_M * MAP_PX_M, MAP_LENGTH_M * MAP_PX_M
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < length)
        pixel = np.where(inside, row, 0), np.where(inside, column, 0)
        sun, sky = (np.asarray(image)[pixel] * (inside * np.float32(1 / 255)) for image in (self.sun_map, self.sky_map))
        return sun, sky


def lamplight(hits: Hits, normal: Normal) -> F32:
    """What the street lamps give, as a share of a lamp's colour: as 1 / distance^2, by the angle of incidence."""
    heads = sorted((s for s in hits.scene.solids if s.kind == Kind.LAMP), key=lambda s: s.z_m)[:MAX_LAMPS]
    total: F32 = np.zeros_like(hits.depth_m)
    for head in heads:
        y = head.profile[0][1] - 0.05
        height = y - head.base_m
        dx, dy, dz = (np.float32(p) - axis for p, axis in zip((head.x_m, y, head.z_m), hits.point_m, strict=True))
        distance2: F32 = dx * dx + dy * dy + dz * dz + np.float32(4)  # a lantern is no point
        facing = dx * normal[0] + dy * normal[1] + dz * normal[2]
        strength = np.float32(0.6 * height * height)
        total = total + strength * np.maximum(facing, 0) / (distance2 * np.sqrt(distance2))
    return total
