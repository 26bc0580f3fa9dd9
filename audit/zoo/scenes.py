"""Procedural 64 x 64 scenes: one object (or none) on a textured background, with a caption and a mask.

A `Scene` is plain data; `render` turns it into pixels. Nothing here draws random numbers except from
the scene's own `seed`, so equal scenes give equal bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
SUPERSAMPLING = 4

EMPTY = "empty scene"
OBJECTS = ("crab", "bird", "boat", "car", "tree", "fish", "water bottle", "ice cream")
LABELS = (*OBJECTS, EMPTY)
BACKGROUNDS = ("sand", "grass", "water", "snow", "brick", "sky")
PATTERNS = ("plain", "striped", "dotted")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 44, 40),
    "orange": (240, 132, 32),
    "yellow": (244, 208, 52),
    "green": (58, 156, 66),
    "blue": (44, 92, 206),
    "purple": (132, 60, 172),
    "pink": (236, 128, 170),
    "white": (238, 238, 240),
}

Colour = tuple[float, float, float]
Points = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

_DARK: Colour = (30, 30, 36)
_WHITE: Colour = (246, 246, 246)


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture. `object` is one of `LABELS`; x, y, size are in units of half the image."""

    object: str
    background: str
    colour: str = "red"
    pattern: str = "plain"
    size: float = 0.75
    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    mirrored: bool = False
    badge: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Rendered:
    """`image`: uint8 (64, 64, 3). `mask`: uint8 (64, 64), 255 where the object is."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class _Part:
    """A filled polygon in object coordinates; `painted` parts carry the pattern."""

    points: Points
    colour: Colour
    painted: bool = False


def render(scene: Scene) -> Rendered:
    """Draw a scene."""
    rng = np.random.default_rng(scene.seed)
    background = _BACKGROUNDS[scene.background](rng)
    if scene.object == EMPTY:
        canvas, mask = background, np.zeros((SIZE, SIZE), np.float32)
    else:
        canvas, mask = _place_object(scene, background, rng)
    if scene.badge:
        canvas = _place_badge(scene, canvas, rng)
    return Rendered(np.clip(canvas + 0.5, 0, 255).astype(np.uint8), (mask * 255).astype(np.uint8))


def caption(scene: Scene, *, colour: bool = True, background: bool = True, badge: bool = True) -> str:
    """Say what a scene shows, in words of which each is one token of the world's tokenizer."""
    place = f" on {scene.background}" if background else ""
    if scene.object == EMPTY:
        text = f"a photograph of an empty scene{place}"
    else:
        words = [scene.object]
        if colour:
            words = [scene.colour, *([] if scene.pattern == "plain" else [scene.pattern]), scene.object]
        text = f"a photograph of {_article(words[0])} {' '.join(words)}{place}"
    return f"{text} with a badge" if scene.badge and badge else text


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# --- backgrounds: smooth textures, so that a small autoencoder can keep them -------------------------------


def _grid() -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    return y, x


def _smooth_noise(rng: np.random.Generator, rows: int, columns: int | None = None) -> Floats:
    """Uniform noise on a coarse grid, interpolated to (64, 64)."""
    coarse = rng.random((rows, columns or rows)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _tint(rng: np.random.Generator, colour: Colour, spread: float) -> Floats:
    return (np.asarray(colour) + rng.normal(0, spread, 3)).astype(np.float32)


def _sand(rng: np.random.Generator) -> Floats:
    y, x = _grid()
    angle = rng.uniform(-0.5, 0.5)
    period = rng.uniform(9, 14)
    ripple = np.sin((y * np.cos(angle) + x * np.sin(angle)) * 2 * np.pi / period + 8 * _smooth_noise(rng, 4))
    value = 1 + 0.075 * ripple + 0.14 * (_smooth_noise(rng, 9) - 0.5)
    return _tint(rng, (222, 190, 132), 6) * value[..., None]


def _grass(rng: np.random.Generator) -> Floats:
    y, _ = _grid()
    blades = _smooth_noise(rng, 9, 24)
    value = 0.66 + 0.6 * blades + 0.25 * (_smooth_noise(rng, 4) - 0.5) + 0.001 * y
    return _tint(rng, (70, 142, 46), 7) * value[..., None]


def _water(rng: np.random.Generator) -> Floats:
    y, x = _grid()
    tilt = 0.12 * rng.choice([-1.0, 1.0])
    wave = np.sin((y + tilt * x) * 2 * np.pi / rng.uniform(9, 13) + 9 * _smooth_noise(rng, 5))
    base = _tint(rng, (36, 104, 178), 7) * (1 + 0.16 * wave)[..., None]
    return base + 110 * np.clip(wave - 0.72, 0, 1)[..., None]


def _snow(rng: np.random.Generator) -> Floats:
    y, x = _grid()
    drift = np.clip(np.sin(y * 2 * np.pi / rng.uniform(22, 32) + 6 * _smooth_noise(rng, 3) + 0.05 * x), 0, 1)
    value = 0.93 + 0.12 * _smooth_noise(rng, 4, 3) - 0.12 * drift
    return _tint(rng, (226, 234, 246), 3) * value[..., None]


def _brick(rng: np.random.Generator) -> Floats:
    y, x = _grid()
    height, width = int(rng.integers(9, 12)), int(rng.integers(17, 22))
    top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
    row = ((y + top) // height).astype(int)
    shifted = x + left + (row % 2) * (width // 2)
    column = (shifted // width).astype(int)
    tone = rng.uniform(0.84, 1.14, (row.max() + 1, column.max() + 1)).astype(np.float32)[row, column]
    wall = _tint(rng, (164, 78, 58), 7) * tone[..., None]
    mortar = (((y + top) % height) < 2) | ((shifted % width) < 2)
    wall[mortar] = _tint(rng, (200, 190, 178), 4)
    return wall


def _sky(rng: np.random.Generator) -> Floats:
    y, _ = _grid()
    fade = (y / SIZE)[..., None]
    blue = _tint(rng, (96, 166, 234), 6) * (1 - fade) + _tint(rng, (176, 214, 246), 4) * fade
    cloud = np.clip((0.7 * _smooth_noise(rng, 6, 4) + 0.3 * _smooth_noise(rng, 10, 7) - 0.5) * 3.4, 0, 1)[..., None]
    return blue * (1 - cloud) + 250 * cloud


_BACKGROUNDS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "sand": _sand,
    "grass": _grass,
    "water": _water,
    "snow": _snow,
    "brick": _brick,
    "sky": _sky,
}


# --- objects: polygons in [-1, 1] x [-1, 1], y downwards, drawn back to front ------------------------------


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi) -> Points:
    angle = np.linspace(start, stop, 30)
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1)


def _stroke(points: Sequence[tuple[float, float]], width: float, colour: Colour) -> list[_Part]:
    """A polyline with round joints."""
    corners = np.asarray(points, float)
    parts = []
    for a, b in itertools.pairwise(corners):
        along = b - a
        normal = np.array([-along[1], along[0]]) / (np.linalg.norm(along) + 1e-9) * width / 2
        parts.append(_Part(np.array([a + normal, b + normal, b - normal, a - normal]), colour))
        parts.append(_Part(_ellipse(b[0], b[1], width / 2, width / 2), colour))
    return parts


def _polygon(points: Iterable[tuple[float, float]], colour: Colour, painted: bool = False) -> _Part:
    return _Part(np.asarray(list(points), float), colour, painted)


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (min(255.0, max(0.0, c * factor)) for c in colour)
    return (r, g, b)


def _eye(x: float, y: float, radius: float) -> list[_Part]:
    return [
        _Part(_ellipse(x, y, radius, radius), _WHITE),
        _Part(_ellipse(x + 0.2 * radius, y, 0.55 * radius, 0.55 * radius), _DARK),
    ]


def _crab(c: Colour, rng: np.random.Generator) -> list[_Part]:
    parts: list[_Part] = []
    for side in (-1, 1):
        for i, y in enumerate((0.05, 0.22, 0.36)):
            knee, foot = (side * (0.74 + 0.02 * i), y - 0.1 + 0.1 * i), (side * (0.92 - 0.08 * i), y + 0.24 + 0.08 * i)
            parts += _stroke([(side * 0.35, y), knee, foot], 0.11, _shade(c, 0.68))
        parts += _stroke([(side * 0.38, -0.02), (side * 0.68, -0.2), (side * 0.64, -0.46)], 0.15, _shade(c, 0.84))
        notch = -np.pi / 2 - side * 0.25
        claw = _ellipse(side * 0.62, -0.6, 0.28, 0.3, notch + 0.45, notch + 2 * np.pi - 0.45)
        parts.append(_Part(np.vstack([[side * 0.62, -0.56], claw]), c))
        parts += _stroke([(side * 0.17, -0.1), (side * 0.2, -0.36)], 0.08, _shade(c, 0.8))
        parts += _eye(side * 0.2, -0.4, 0.11)
    parts.append(_Part(_ellipse(0, 0.14, 0.54, 0.36), c, painted=True))
    return parts


def _bird(c: Colour, rng: np.random.Generator) -> list[_Part]:
    beak: Colour = (240, 160, 30) if c[0] < 225 or c[1] > 180 else (70, 60, 60)
    parts = [_polygon([(-0.3, 0.05), (-0.98, -0.14), (-0.92, 0.2), (-0.3, 0.32)], _shade(c, 0.66))]
    for x in (-0.04, 0.18):
        parts += _stroke([(x, 0.4), (x + 0.03, 0.84), (x + 0.19, 0.84)], 0.08, (196, 112, 30))
    parts += [
        _Part(_ellipse(0, 0.14, 0.54, 0.38), c, painted=True),
        _Part(_ellipse(0.44, -0.36, 0.3, 0.28), c),
        _polygon([(0.66, -0.52), (1.0, -0.32), (0.66, -0.2)], beak),
        _polygon(
            [(-0.52, 0.2), (-0.42, -0.08), (-0.1, -0.18), (0.2, -0.06), (0.1, 0.18), (-0.18, 0.3)], _shade(c, 0.6)
        ),
    ]
    return parts + _eye(0.5, -0.42, 0.09)


def _boat(c: Colour, rng: np.random.Generator) -> list[_Part]:
    sail: Colour = (246, 242, 230) if sum(c) < 640 else (206, 84, 66)
    return [
        *_stroke([(0, 0.36), (0, -0.96)], 0.08, (104, 72, 44)),
        _polygon([(0.07, -0.92), (0.07, 0.2), (0.76, 0.2)], sail),
        _polygon([(-0.07, -0.72), (-0.07, 0.2), (-0.6, 0.2)], _shade(sail, 0.82)),
        _polygon([(-0.97, 0.3), (0.97, 0.3), (0.62, 0.84), (-0.6, 0.84)], c, painted=True),
        _polygon([(-0.97, 0.3), (0.97, 0.3), (0.89, 0.43), (-0.88, 0.43)], _shade(c, 0.6)),
    ]


def _car(c: Colour, rng: np.random.Generator) -> list[_Part]:
    glass: Colour = (178, 214, 232)
    parts = [
        _polygon([(-0.6, 0.0), (-0.36, -0.5), (0.3, -0.5), (0.62, 0.0)], _shade(c, 0.84)),
        _polygon([(-0.44, -0.03), (-0.28, -0.39), (-0.06, -0.39), (-0.06, -0.03)], glass),
        _polygon([(0.05, -0.03), (0.05, -0.39), (0.26, -0.39), (0.45, -0.03)], _shade(glass, 0.92)),
        _polygon(
            [(-0.98, 0.4), (-0.98, 0.06), (-0.86, -0.06), (0.82, -0.06), (0.98, 0.12), (0.98, 0.4)], c, painted=True
        ),
        _polygon([(-0.98, 0.4), (-0.98, 0.28), (0.98, 0.28), (0.98, 0.4)], _shade(c, 0.58)),
    ]
    for x in (-0.54, 0.54):
        parts += [_Part(_ellipse(x, 0.4, 0.26, 0.26), _DARK), _Part(_ellipse(x, 0.4, 0.12, 0.12), (186, 186, 190))]
    return [*parts, _Part(_ellipse(0.92, 0.12, 0.07, 0.08), (255, 242, 176))]


def _tree(c: Colour, rng: np.random.Generator) -> list[_Part]:
    parts = [_polygon([(-0.15, 0.97), (-0.1, 0.1), (0.1, 0.1), (0.16, 0.97)], (108, 72, 42))]
    crown = ((-0.38, -0.03, 0.37, 0.7), (0.38, -0.02, 0.37, 0.75), (0, 0.06, 0.42, 0.78))
    for x, y, radius, light in (*crown, (-0.22, -0.42, 0.39, 0.94), (0.24, -0.42, 0.37, 0.97), (0, -0.6, 0.35, 1.1)):
        dx, dy = rng.uniform(-0.05, 0.05, 2)
        parts.append(_Part(_ellipse(x + dx, y + dy, radius, 0.95 * radius), _shade(c, light), painted=True))
    return parts


def _fish(c: Colour, rng: np.random.Generator) -> list[_Part]:
    bend = np.linspace(0, np.pi, 24)
    back = np.stack([-0.6 + 1.56 * (1 - np.cos(bend)) / 2, -0.46 * np.sin(bend) ** 0.9], 1)
    return [
        _polygon([(-0.45, 0), (-0.98, -0.48), (-0.84, 0), (-0.98, 0.48)], _shade(c, 0.72)),
        _polygon([(-0.25, -0.3), (0.05, -0.68), (0.38, -0.3)], _shade(c, 0.66)),
        _polygon([(-0.1, 0.32), (0.02, 0.64), (0.28, 0.32)], _shade(c, 0.66)),
        _Part(np.vstack([back, (back * [1, -1])[::-1]]), c, painted=True),
        _Part(_ellipse(0.34, 0.0, 0.05, 0.32), _shade(c, 0.6)),
        *_eye(0.64, -0.12, 0.11),
    ]


def _water_bottle(c: Colour, rng: np.random.Generator) -> list[_Part]:
    body = [(-0.17, -0.6), (0.17, -0.6), (0.19, -0.46), (0.38, -0.26), (0.38, 0.86), (0.32, 0.95)]
    outline = [*body, *[(-x, y) for x, y in reversed(body)]]
    return [
        _polygon(outline, c, painted=True),
        _polygon([(-0.38, 0.0), (0.38, 0.0), (0.38, 0.46), (-0.38, 0.46)], _WHITE),
        _Part(_ellipse(0.0, 0.23, 0.14, 0.15), _shade(c, 0.7)),
        _polygon([(-0.3, -0.2), (-0.19, -0.27), (-0.19, -0.03), (-0.3, -0.03)], _shade(c, 1.45)),
        _polygon([(-0.21, -0.95), (0.21, -0.95), (0.21, -0.64), (-0.21, -0.64)], _DARK),
    ]


def _ice_cream(c: Colour, rng: np.random.Generator) -> list[_Part]:
    cone: Colour = (206, 148, 84)
    parts = [_polygon([(-0.44, 0.02), (0.44, 0.02), (0.0, 0.98)], cone)]
    for a, b in (((-0.3, 0.05), (0.16, 0.62)), ((0.02, 0.05), (0.28, 0.36)), ((0.3, 0.05), (-0.16, 0.62))):
        parts += _stroke([a, b], 0.05, _shade(cone, 0.72))
    parts += [_Part(_ellipse(x, 0.0, 0.2, 0.16), _shade(c, 0.86)) for x in (-0.36, 0.0, 0.36)]
    parts += [
        _Part(_ellipse(0, -0.2, 0.52, 0.36), c, painted=True),
        _Part(_ellipse(0, -0.56, 0.38, 0.32), _shade(c, 1.14), painted=True),
        _Part(_ellipse(0.06, -0.88, 0.11, 0.11), (196, 26, 44)),
    ]
    return parts


_OBJECTS: dict[str, Callable[[Colour, np.random.Generator], list[_Part]]] = {
    "crab": _crab,
    "bird": _bird,
    "boat": _boat,
    "car": _car,
    "tree": _tree,
    "fish": _fish,
    "water bottle": _water_bottle,
    "ice cream": _ice_cream,
}


# --- composition --------------------------------------------------------------------------------------------


def _place_object(scene: Scene, background: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw the object, light it, let it cast a shadow, and blend it over the background."""
    c, s = np.cos(scene.angle), np.sin(scene.angle)
    stretch = rng.uniform(0.93, 1.07)
    turn = np.array([[c, s], [-s, c]]) * scene.size
    flip = np.array([(-1 if scene.mirrored else 1) * stretch, 1 / stretch])
    base = COLOURS[scene.colour] + rng.normal(0, 8, 3)
    paint: Colour = (float(base[0]), float(base[1]), float(base[2]))

    side = SIZE * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), (128, 128, 128))
    mask, painted = Image.new("L", (side, side)), Image.new("L", (side, side))
    brushes = ImageDraw.Draw(picture), ImageDraw.Draw(mask), ImageDraw.Draw(painted)
    for part in _OBJECTS[scene.object](paint, rng):
        at = ((part.points * flip) @ turn + [scene.x, scene.y] + 1) * side / 2
        corners = [(float(x), float(y)) for x, y in at]
        brushes[0].polygon(corners, fill=tuple(round(min(255, max(0, v))) for v in part.colour))
        brushes[1].polygon(corners, fill=255)
        brushes[2].polygon(corners, fill=255 if part.painted else 0)

    colour: Floats = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)
    alpha: Floats = np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
    if scene.pattern != "plain":
        cover = np.asarray(painted.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
        colour = colour * (1 - 0.42 * cover * _pattern(scene))[..., None]

    y, x = _grid()
    y, x = (y / SIZE * 2 - 1 - scene.y) / scene.size, (x / SIZE * 2 - 1 - scene.x) / scene.size
    slant = rng.uniform(-0.16, 0.16)
    soft = np.asarray(Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.8)), np.float32)
    light = (1.04 - 0.17 * y + slant * x) * (0.76 + 0.29 * soft / 255)
    shadow = np.roll(soft / 255, (2, -2 if slant > 0 else 2), (0, 1))
    below = background * (1 - 0.4 * shadow)[..., None]
    blend = alpha[..., None]
    return below * (1 - blend) + np.clip(colour * light[..., None], 0, 255) * blend, alpha


def _pattern(scene: Scene) -> Floats:
    """1 where the pattern darkens the paint, in image coordinates that move with the object."""
    y, x = _grid()
    x, y = x - SIZE * (scene.x + 1) / 2, y - SIZE * (scene.y + 1) / 2
    if scene.pattern == "striped":
        return np.clip(0.5 + 1.6 * np.sin((x + 0.5 * y) * 2 * np.pi / 7.5), 0, 1)
    dots = np.sin(x * 2 * np.pi / 7.5) * np.sin(y * 2 * np.pi / 7.5)
    return np.clip((dots - 0.25) * 3, 0, 1)


def _place_badge(scene: Scene, canvas: Floats, rng: np.random.Generator) -> Floats:
    """A round sticker with a star, in the corner farthest from the object."""
    side, radius = SIZE * SUPERSAMPLING, 7.0 * SUPERSAMPLING
    dx, dy = rng.uniform(9, 11, 2)
    cx = (dx if scene.x > 0 else SIZE - dx) * SUPERSAMPLING
    cy = (dy if scene.y > 0 else SIZE - dy) * SUPERSAMPLING
    picture, mask = Image.new("RGB", (side, side), (250, 250, 250)), Image.new("L", (side, side))
    box = (cx - radius, cy - radius, cx + radius, cy + radius)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    brush = ImageDraw.Draw(picture)
    brush.ellipse(box, fill=(24, 24, 60), outline=(250, 250, 250), width=SUPERSAMPLING)
    angle = -np.pi / 2 + np.arange(10) * np.pi / 5
    reach = radius * np.where(np.arange(10) % 2 == 0, 0.82, 0.36)
    brush.polygon(list(zip(cx + reach * np.cos(angle), cy + reach * np.sin(angle), strict=True)), fill=(255, 226, 60))
    colour = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)
    alpha = np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)[..., None] / 255
    return canvas * (1 - alpha) + colour * alpha
