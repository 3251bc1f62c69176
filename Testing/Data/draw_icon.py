"""Draw the extension's icons: an axial slice of a brain, a warm and a cool spot, a crosshair.

Run `python Testing/Data/draw_icon.py`. It writes `ExtensionIcon.png` (Extensions Manager) and
`SaliencyExplain/Resources/Icons/SaliencyExplain.png` (module list). Everything is drawn from
formulas; x and y are 0 in the middle and 1 at the borders of the picture.
"""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ICONS = {
    ROOT / "ExtensionIcon.png": 128,
    ROOT / "SaliencyExplain" / "Resources" / "Icons" / "SaliencyExplain.png": 64,
}
OVERSAMPLING = 8

# Ramps of colours: the tile from top to bottom, the spots from edge to core
TILE = (0x26, 0x3A, 0x54), (0x0E, 0x17, 0x25)
WARM = (0xB3, 0x1B, 0x1B), (0xE8, 0x45, 0x1C), (0xFB, 0x96, 0x1E), (0xFF, 0xE2, 0x6A)
COOL = (0x1C, 0x45, 0xB0), (0x1F, 0x74, 0xE0), (0x3F, 0xB2, 0xF5), (0xB5, 0xEC, 0xFF)

RIM = (0x5B, 0x78, 0x99)
CORTEX, WHITE_MATTER, FLUID = (0x6B, 0x7B, 0x8F), (0xB3, 0xBE, 0xCB), (0x1B, 0x29, 0x3B)
CROSSHAIR = (0xFF, 0xFF, 0xFF)

WARM_CENTRE, WARM_RADIUS = (0.29, -0.25), 0.36
COOL_CENTRE, COOL_RADIUS = (-0.31, 0.29), 0.29
GYRI = 7  # in one hemisphere


def over(picture, colour, cover):
    """Paint `colour` where `cover` (rows x columns, 0..1) says so."""
    return picture + cover[..., None] * (np.asarray(colour, dtype=float) - picture)


def inside(distance, softness=0.012):
    """1 where a signed distance is negative, 0 where positive, soft between."""
    return np.clip(0.5 - distance / softness, 0, 1)


def ramp(level, colours):
    """Colours for levels: 0 takes the first colour, 1 the last."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(level, stops, channel) for channel in zip(*colours, strict=True)]
    return np.stack(channels, axis=-1)


def rounded_square(x, y, half, radius):
    """Signed distance to a square with rounded corners."""
    dx, dy = np.abs(x) - (half - radius), np.abs(y) - (half - radius)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - radius


def paint_brain(picture, x, y):
    """Cortex, white matter, sulci, fissure and ventricles; also how much of each pixel is brain."""
    from_centre = np.hypot(x / (0.70 + 0.05 * y), y / 0.85)
    from_front = np.arctan2(np.abs(x), -y)  # 0 at the front, pi at the back, the same on both sides
    phase = GYRI * (from_front + 0.06 * np.sin(3 * from_front))
    bulge = np.abs(np.sin(phase))

    brain = inside((from_centre - 0.93 - 0.08 * np.sqrt(bulge)) * 0.7)
    picture = over(picture, CORTEX, brain)
    picture = over(picture, WHITE_MATTER, inside((from_centre - 0.60 - 0.20 * bulge) * 0.7, 0.03))
    to_sulcus = from_centre * np.arcsin(bulge) / GYRI * 0.7
    sulci = np.maximum(to_sulcus - 0.013, (0.74 - from_centre) * 0.7)
    picture = over(picture, FLUID, inside(sulci) * brain)
    fissure = np.maximum(np.abs(x) - 0.014, 0.36 - np.abs(y))
    picture = over(picture, FLUID, inside(fissure) * brain)
    horns = np.hypot((np.abs(x) - 0.06 - 0.9 * y * y) / 0.055, y / 0.30) - 1
    return over(picture, FLUID, inside(horns, 0.2)), brain


def paint_spot(picture, x, y, brain, centre, radius, colours):
    """A part of a map: strongest at `centre`, faded out at its border, only on the brain."""
    u, v = x - centre[0], y - centre[1]
    wobble = 1 + 0.06 * np.sin(3 * np.arctan2(v, u) + 1)
    level = np.clip(1 - np.hypot(u, v) / (radius * wobble), 0, 1)
    return over(picture, ramp(level * 1.25, colours), np.clip(level / 0.16, 0, 1) * brain)


def draw(size):
    """RGBA picture of `size` x `size` pixels."""
    fine = size * OVERSAMPLING
    y, x = (np.mgrid[:fine, :fine] + 0.5) / fine * 2 - 1
    tile = rounded_square(x, y, 0.99, 0.38)

    picture = ramp((y + 1) / 2, TILE)
    picture = over(picture, RIM, inside(np.abs(tile + 0.02) - 0.02))
    picture, brain = paint_brain(picture, x, y)
    picture = paint_spot(picture, x, y, brain, COOL_CENTRE, COOL_RADIUS, COOL)
    picture = paint_spot(picture, x, y, brain, WARM_CENTRE, WARM_RADIUS, WARM)

    across, along = np.abs(x - WARM_CENTRE[0]), np.abs(y - WARM_CENTRE[1])
    half_width = 0.015 + 1 / size  # a small picture needs thicker lines
    lines = inside(np.minimum(across, along) - half_width)
    lines *= inside(0.20 - np.maximum(across, along))
    picture = over(picture, CROSSHAIR, 0.95 * lines * inside(tile + 0.08))

    rgba = np.concatenate([picture, 255 * inside(tile)[..., None]], axis=-1)
    image = Image.fromarray(rgba.round().astype(np.uint8), mode="RGBA")
    return image.resize((size, size), Image.Resampling.BOX)


if __name__ == "__main__":
    for path, size in ICONS.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(size).save(path, optimize=True)
