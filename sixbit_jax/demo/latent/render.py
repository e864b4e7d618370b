"""Draws videos of the small world: a pure function of a key, made to be jitted.

Training renders its own batches on the accelerator, so that no data travels. Lengths
are pixels of a 128 x 128 frame at zoom 1, with the origin in the middle, x to the right
and y downwards. Frames of another size show the same scene.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sixbit_jax.demo.latent import world

CUBE_HALF_SIDE = 0.88
RING_HOLE = 0.5
# Of each shape in units of its radius: area / radius^2, and how far below the centre of
# its bounding box the centroid lies.
AREAS = (
    math.pi,
    4 * CUBE_HALF_SIDE**2,
    2.0,
    math.pi * (1 - RING_HOLE**2),
)
CENTROID_OFFSETS = (0.0, 0.0, 1 / 3, 0.0)
PAN = 18.0
ZOOM = (0.86, 1.12)

_RADIUS = (17.0, 21.0)
_SMALL, _GROWTH = (11.5, 13.0), (1.75, 1.95)
_TRAVEL = (44.0, 54.0)
# Objects move on lanes on either side of the middle, so that they never meet.
_LANE = (25.5, 29.0)
_ALONG = 26.0
_TONES = (0.24, 0.74)
_CONTRAST = 0.13


class Scene(NamedTuple):
    """Where everything is in every frame.

    Attributes:
      centre: x and y of the two objects, the moving one first.
      radius: half of the side of their bounding boxes.
      camera: x of what the middle of the frame shows, and the zoom.
      phase: where the wall's pattern begins, x and y.
      tint: small differences of the wall's colour from grey.
    """

    centre: Float[Array, "batch frames 2 2"]
    radius: Float[Array, "batch frames 2"]
    camera: Float[Array, "batch frames 2"]
    phase: Float[Array, "batch 2"]
    tint: Float[Array, "batch 3"]


def sample_scenes(key: Key[Array, ""], attributes: world.Attributes) -> Scene:
    """Draws places, sizes and speeds that fit the attributes."""
    batch = attributes.shape.shape[0]
    keys = iter(jax.random.split(key, 16))

    def draw(low: float, high: float, *shape: int) -> Array:
        return jax.random.uniform(
            next(keys), (batch, *shape), minval=low, maxval=high, dtype=jnp.float32
        )

    motion = attributes.motion
    grows = motion == world.MOTIONS.index("grows")
    upright = (motion == world.MOTIONS.index("up")) | (
        motion == world.MOTIONS.index("down")
    )
    time = jnp.linspace(0.0, 1.0, world.FRAMES)
    radius, small = draw(*_RADIUS), draw(*_SMALL)
    last = jnp.where(grows, small * draw(*_GROWTH), radius)
    first = jnp.where(grows, small, radius)
    moving = first[:, None] + (last - first)[:, None] * time
    standing = jnp.broadcast_to(draw(*_RADIUS)[:, None], moving.shape)

    side = jnp.where(draw(0.0, 1.0) < 0.5, -1.0, 1.0)
    lane, other_lane = side * draw(*_LANE), -side * draw(*_LANE)
    sign = jnp.asarray([-1.0, 1.0, -1.0, 1.0, 0.0])[motion]
    travel = sign * draw(*_TRAVEL)
    middle = draw(-4.0, 4.0) + grows * draw(-22.0, 22.0)
    along = middle[:, None] + travel[:, None] * (time - 0.5)
    other_along = jnp.broadcast_to(draw(-_ALONG, _ALONG)[:, None], along.shape)

    def places(along: Array, lane: Array) -> Array:
        lane = jnp.broadcast_to(lane[:, None], along.shape)
        flat, tall = jnp.stack([along, lane], -1), jnp.stack([lane, along], -1)
        return jnp.where(upright[:, None, None], tall, flat)

    pan = jnp.asarray([0.0, -1.0, 1.0, 0.0])[attributes.camera]
    x = PAN * pan[:, None] * (time - 0.5)
    closer = (attributes.camera == world.CAMERAS.index("zooms in"))[:, None]
    zoom = jnp.where(closer, ZOOM[0] + (ZOOM[1] - ZOOM[0]) * time, 1.0)
    return Scene(
        centre=jnp.stack([places(along, lane), places(other_along, other_lane)], 2),
        radius=jnp.stack([moving, standing], 2),
        camera=jnp.stack([x, zoom], -1),
        phase=draw(0.0, 48.0, 2),
        tint=draw(-0.02, 0.02, 3),
    )


def distance(
    shape: int, u: Float[Array, "..."], v: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Signed distance to a shape's outline, in units of its radius; below 0 inside."""
    match world.SHAPES[shape]:
        case "ball":
            return jnp.sqrt(u**2 + v**2) - 1
        case "cube":
            return jnp.maximum(jnp.abs(u), jnp.abs(v)) - CUBE_HALF_SIDE
        case "pyramid":
            return jnp.maximum(v - 1, (2 * jnp.abs(u) - v - 1) / math.sqrt(5))
        case "ring":
            middle, half = (1 + RING_HOLE) / 2, (1 - RING_HOLE) / 2
            return jnp.abs(jnp.sqrt(u**2 + v**2) - middle) - half
        case other:
            raise ValueError(f"no outline is defined for the shape {other!r}")


def _lit(nx: Array, ny: Array, nz: Array) -> tuple[Array, Array]:
    """Diffuse and specular light from the upper left, of a unit normal."""
    towards = nx * -0.48 + ny * -0.60 + nz * 0.64
    # Half way between the light and the viewer.
    half = nx * -0.265 + ny * -0.331 + nz * 0.905
    return jnp.maximum(towards, 0.0), jnp.maximum(half, 0.0) ** 24


def _shade(shape: int, u: Array, v: Array) -> tuple[Array, Array]:
    """Diffuse and specular light on a shape at a place in units of its radius."""
    match world.SHAPES[shape]:
        case "ball":
            return _lit(u, v, jnp.sqrt(jnp.maximum(1 - u**2 - v**2, 0.0)))
        case "ring":
            length = jnp.maximum(jnp.sqrt(u**2 + v**2), 1e-3)
            across = (length - (1 + RING_HOLE) / 2) / ((1 - RING_HOLE) / 2)
            across = jnp.clip(across, -1, 1)
            up = jnp.sqrt(jnp.maximum(1 - across**2, 0.0))
            return _lit(across * u / length, across * v / length, up)
        case "cube":
            # A lid with bevelled edges: four tilted faces around a flat one.
            edge = jnp.maximum(jnp.abs(u), jnp.abs(v)) > 0.6 * CUBE_HALF_SIDE
            wide = jnp.abs(u) > jnp.abs(v)
            nx = jnp.where(edge & wide, 0.7 * jnp.sign(u), 0.0)
            ny = jnp.where(edge & ~wide, 0.7 * jnp.sign(v), 0.0)
            diffuse, _ = _lit(nx, ny, jnp.where(edge, 0.71, 1.0))
            return diffuse, jnp.zeros_like(u)
        case "pyramid":
            right = u > 0.22 * (v + 1) * 0.5
            diffuse = jnp.where(right, 0.22, 0.82) + 0.06 * (1 - v)
            return diffuse, jnp.zeros_like(u)
        case other:
            raise ValueError(f"no light is defined for the shape {other!r}")


def _wall(texture: Array, x: Array, y: Array, blur: Array) -> Array:
    """The pattern in [-1, 1] at a place of the world; edges of `blur` pixels."""

    def sharp(wave: Array, slope: float) -> Array:
        # Slope of the wave per pixel at its zero, so that edges are anti-aliased.
        return jnp.clip(wave / (slope * blur), -1.0, 1.0)

    k = math.pi / 16
    checks = sharp(jnp.sin(k * x), k) * sharp(jnp.sin(k * y), k)
    s = 2 * math.pi / 26
    stripes = sharp(jnp.sin(s * (0.8 * x + 0.6 * y)), s)
    pitch = 24.0
    dx, dy = ((z / pitch - jnp.round(z / pitch)) * pitch for z in (x, y))
    dots = jnp.clip((7.0 - jnp.sqrt(dx**2 + dy**2)) / blur, -1.0, 1.0)
    return jnp.select([texture == 0, texture == 1], [checks, stripes], dots)


def _frame(
    attributes: world.Attributes,
    centre: Float[Array, "2 2"],
    radius: Float[Array, "2"],
    camera: Float[Array, "2"],
    phase: Float[Array, "2"],
    tint: Float[Array, "3"],
    size: int,
) -> Float[Array, "3 H W"]:
    """One frame of one video."""
    pixel = world.SIZE / size
    grid = (jnp.arange(size, dtype=jnp.float32) + 0.5) * pixel - world.SIZE / 2
    x = jnp.broadcast_to(grid[None, :], (size, size)) / camera[1] + camera[0]
    y = jnp.broadcast_to(grid[:, None], (size, size)) / camera[1]
    blur = pixel / camera[1]
    pattern = _wall(attributes.texture, x + phase[0], y + phase[1], blur)
    light = 1.0 - 0.16 * (grid[:, None] / 64) - 0.05 * (grid[None, :] / 64)
    tone = jnp.asarray(_TONES)[attributes.tone]
    wall = (tone + _CONTRAST * pattern) * light
    picture = wall[None] + tint[:, None, None]
    colours = jnp.asarray(list(world.COLOURS.values()), jnp.float32)
    objects = ((1, attributes.other_shape, attributes.other_colour),)
    objects += ((0, attributes.shape, attributes.colour),)
    for index, shape, colour in objects:
        u = (x - centre[index, 0]) / radius[index]
        v = (y - centre[index, 1]) / radius[index]
        across = radius[index] / blur

        def cover(u: Array, v: Array, shape: Array = shape) -> Array:
            kinds = [distance(kind, u, v) for kind in range(len(world.SHAPES))]
            return jnp.select([shape == i for i in range(len(kinds))], kinds)

        # A soft shadow on the wall, below and to the right.
        shadow = jax.nn.sigmoid(-7.0 * cover(u - 0.20, v - 0.26))
        picture = picture * (1 - 0.42 * shadow)
        shades = [_shade(kind, u, v) for kind in range(len(world.SHAPES))]
        chosen = [shape == i for i in range(len(shades))]
        diffuse = jnp.select(chosen, [shade[0] for shade in shades])
        specular = jnp.select(chosen, [shade[1] for shade in shades])
        body = colours[colour][:, None, None] * (0.42 + 0.62 * diffuse)
        body = body + 0.38 * specular
        alpha = jnp.clip(0.5 - cover(u, v) * across, 0.0, 1.0)
        picture = picture + alpha * (body - picture)
    return jnp.clip(picture, 0.0, 1.0) * 2 - 1


def render(
    attributes: world.Attributes, scene: Scene, *, size: int = world.SIZE
) -> Float[Array, "batch frames 3 H W"]:
    """Draws videos.

    Args:
      attributes: of each video.
      scene: places and sizes per frame.
      size: rows and columns of a frame.

    Returns:
      float32 RGB in [-1, 1].
    """

    def video(attributes: world.Attributes, scene: Scene) -> Array:
        def one(frame: tuple[Array, Array, Array]) -> Array:
            return _frame(attributes, *frame, scene.phase, scene.tint, size)

        return jax.vmap(one)((scene.centre, scene.radius, scene.camera))

    return jax.vmap(video)(attributes, scene)


def make_videos(
    key: Key[Array, ""],
    rows: Int[Array, "batch 8"],
    *,
    frames: int = world.FRAMES,
    size: int = world.SIZE,
    anywhere: bool = False,
) -> Float[Array, "batch frames 3 H W"]:
    """Random videos with the given attributes, as `render` returns them.

    Args:
      key: random key.
      rows: attribute vectors.
      frames: how many are drawn of each.
      size: rows and columns of a frame.
      anywhere: draw them from anywhere in a video, not from its beginning.
    """
    attributes = world.from_rows(rows)
    key, place = jax.random.split(key)
    scene = sample_scenes(key, attributes)
    first = jnp.zeros(rows.shape[0], jnp.int32)
    if anywhere:
        limit = world.FRAMES - frames + 1
        first = jax.random.randint(place, first.shape, 0, limit)

    def cut(x: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, frames)

    moving = {
        name: jax.vmap(cut)(getattr(scene, name), first)
        for name in ("centre", "radius", "camera")
    }
    return render(attributes, scene._replace(**moving), size=size)
