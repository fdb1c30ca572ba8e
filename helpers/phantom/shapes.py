"""Anatomy of the phantom: the analytic shapes of a thorax and one patient's variation of them.

Everything is placed in reference millimetres of an average adult: x grows to the patient's left,
y to the back, z to the head; the origin lies at the carina, in the middle of the chest. A
patient's own size, rotation and position are applied to the coordinates, so every shape is
written down once. Distances are negative inside a shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FAT, MUSCLE, BLOOD, AIR = -100.0, 55.0, 42.0, -1000.0
ANGLES = np.arange(-180, 180, 0.25)  # around the body's axis, degrees, 0 at the front
SIDE_ANGLE = np.abs(ANGLES)
LEVELS = [-300, -200, -150, -100, -50, 0, 40, 70, 95, 115, 160]
HALF_WIDTH = [124, 132, 136, 134, 131, 125, 115, 102, 86, 66, 56]
TO_FRONT = [96, 98, 97, 94, 91, 84, 72, 58, 47, 42, 42]
TO_BACK = [86, 90, 93, 94, 92, 88, 81, 74, 66, 56, 48]
RIB_STEP = 24.0
# Balls: x, y, z of the centre, three half axes, turn in degrees. Tubes: x, y, z, radius by point.
KIDNEY, LOBE_OF_THYROID = (27, 24, 50, 0), (10, 12, 24, 0)
TRACHEA = [(0, 6, 170, 8), (0, 12, 60, 8.6), (0, 18, 4, 8.6)]
RIGHT_BRONCHUS = [(0, 18, 6, 7.2), (-22, 19, -10, 6.4), (-38, 21, -24, 5)]
LEFT_BRONCHUS = [(0, 18, 6, 6.8), (24, 22, -16, 5.6), (42, 25, -28, 4.6)]
AORTA = [(-2, -24, -45, 14), (-14, -30, -8, 16), (-13, -26, 22, 15), (-2, -8, 40, 14),
         (16, 14, 40, 13), (26, 34, 24, 12.5), (26, 40, -20, 12), (20, 42, -90, 11.5),
         (6, 36, -190, 11), (2, 36, -330, 10)]  # fmt: skip
SHAPES = [
    ((92, 34, -160, 30, 42, 44, -25), 50, "abdomen"),  # spleen
    ((58, 56, -215, *KIDNEY), 32, "abdomen"),
    ((-62, 62, -236, *KIDNEY), 32, "abdomen"),
    ([(24, -36, 78, 3), (40, -16, 120, 9), (46, 0, 170, 11)], MUSCLE, "both sides"),
    ([(30, 36, 70, 3), (34, 30, 108, 13), (34, 30, 170, 17)], MUSCLE, "both sides"),
    ([(-22, 18, -60, 11), (-21, 26, -110, 12), (-22, 34, -320, 12)], BLOOD, ""),  # lower cava
    ((26, -40, -66, 60, 43, 45, -33), BLOOD + 3, "heart"),
    ((-24, -20, -52, 26, 31, 38, 0), BLOOD, "heart"),
    ((4, 12, -42, 34, 20, 23, 0), BLOOD, "heart"),
    (AORTA, BLOOD, "mediastinum"),
    ([(12, -44, -38, 14), (19, -32, -10, 13.5), (22, -14, 2, 12)], BLOOD, "mediastinum"),
    ([(20, -18, -4, 11), (-8, -8, -8, 10), (-40, 4, -14, 8)], BLOOD, "mediastinum"),
    ([(22, -12, 2, 11), (36, 8, 4, 9.5), (42, 18, -10, 8)], BLOOD, "mediastinum"),
    ([(-24, -16, -35, 10), (-27, -20, 20, 9), (-24, -22, 52, 8), (-34, -18, 90, 6),
      (-36, -10, 160, 6)], BLOOD, "mediastinum"),  # upper cava
    ([(-24, -24, 44, 7), (6, -34, 50, 7), (30, -26, 66, 7), (36, -12, 160, 6)], BLOOD,
     "mediastinum"),
    ([(-8, -16, 40, 7), (-16, -8, 62, 6), (-26, 0, 160, 4)], BLOOD, "mediastinum"),
    ([(4, -4, 44, 4.5), (16, -4, 70, 4), (26, 0, 160, 3.8)], BLOOD, "mediastinum"),
    ([(18, 10, 46, 5.5), (28, 12, 66, 5), (60, 0, 92, 4.5), (110, -5, 88, 4.5)], BLOOD, ""),
    ([(-22, 4, 66, 5), (-60, 0, 86, 4.5), (-110, -5, 84, 4.5)], BLOOD, ""),
    ((-20, -2, 108, *LOBE_OF_THYROID), 105, ""),
    ((20, -2, 108, *LOBE_OF_THYROID), 105, ""),
    ([(3, 30, 160, 6), (3, 32, 20, 7), (6, 28, -60, 8), (14, 22, -120, 8), (34, 6, -140, 8)], 38,
     "mediastinum"),  # oesophagus
    ([(-2, 22, -20, 6), (6, 24, -36, 7)], 40, "mediastinum"),  # subcarinal nodes
    ([(22, -58, 74, 8), (74, -52, 94, 5.5), (150, -22, 122, 6)], 600, "bones"),  # clavicles
]  # fmt: skip


@dataclass
class Patient:
    """What varies between patients; lengths in reference mm, scales without unit."""

    scale: tuple[float, float, float]  # (z, y, x): patient mm per reference mm
    shift: tuple[float, float]  # (y, x) of the chest's middle from the image centre, patient mm
    rotation: float  # radians
    expiration: float  # how far the diaphragm stands above full inspiration
    fat: float
    muscle: float
    breast: float
    bone: float
    wall: np.ndarray  # (4, angles) small individual waves of the chest wall
    parts: list  # (cone (2, 4) or ball (7,), HU, role) of the inner organs, in order of painting
    arms_down: bool = False  # beside the chest; else above the head, out of the picture


class Plane:
    """Reference coordinates of one slice's pixels: x, y, radius and the index of the angle."""

    def __init__(self, matrix: int, spacing: float, patient: Patient):
        self.matrix, self.spacing, self.patient = matrix, spacing, patient
        self.turn = float(np.cos(patient.rotation)), float(np.sin(patient.rotation))
        self.pixel = float(spacing / np.sqrt(patient.scale[1] * patient.scale[2]))
        place = (np.arange(matrix, dtype=np.float32) - (matrix - 1) / 2) * spacing
        y, x = place[:, None] - patient.shift[0], place[None, :] - patient.shift[1]
        self.x = (self.turn[0] * x + self.turn[1] * y) / patient.scale[2]
        self.y = (self.turn[0] * y - self.turn[1] * x) / patient.scale[1]
        self.radius = np.hypot(self.x, self.y)
        angle = np.degrees(np.arctan2(self.x, -self.y)) + 180
        self.angle = (angle * (len(ANGLES) / 360)).astype(np.intp) % len(ANGLES)

    def to_pixels(self, x, y):
        """(row, column) as floats of reference coordinates x, y (mm)."""
        (cos, sin), (_, scale_y, scale_x) = self.turn, self.patient.scale
        x, y, middle = x * scale_x, y * scale_y, (self.matrix - 1) / 2
        row = (cos * y + sin * x + self.patient.shift[0]) / self.spacing + middle
        return row, (cos * x - sin * y + self.patient.shift[1]) / self.spacing + middle

    def window(self, low_x, high_x, low_y, high_y):
        """The two slices that cut the pixels around a box out of an (H, W) array."""
        x, y = np.array([low_x, low_x, high_x, high_x]), np.array([low_y, high_y] * 2)
        edges = [np.clip([v.min() - 1, v.max() + 2], 0, self.matrix) for v in self.to_pixels(x, y)]
        return tuple(slice(int(low), int(high)) for low, high in edges)


def draw_patient(rng, lung_height: float, expiration: float) -> Patient:
    """Draw one patient whose lungs would be `lung_height` (mm) high in full inspiration."""
    size, woman = rng.normal(1.0, 0.055), rng.random() < 0.45
    order = np.arange(2, 7)[:, None, None]
    waves = np.cos(np.radians(order * ANGLES) + rng.uniform(0, 2 * np.pi, (5, 4, 1)))
    return Patient(
        scale=(lung_height / 298, size * rng.normal(1, 0.05), size * rng.normal(1, 0.03)),
        shift=(float(rng.normal(-8, 7)), float(rng.normal(0, 7))),
        rotation=float(np.radians(rng.normal(0, 2.2))),
        expiration=expiration,
        fat=float(np.clip(rng.lognormal(2.6, 0.5), 3, 42)),
        muscle=float(rng.normal(0.85 if woman else 1.1, 0.12)),
        breast=float(rng.uniform(14, 42)) if woman else 0.0,
        bone=float(np.clip(rng.normal(1, 0.15), 0.65, 1.35)),
        wall=(rng.normal(0, 1, (5, 4, 1)) / order * waves).sum(axis=0),
        parts=_individual_parts(rng),
    )


def _individual_parts(rng):
    """The shapes with every point moved and every size changed a little, tubes cut into cones."""
    parts = []
    blood = rng.normal(0, 3)
    for shape, hu, role in SHAPES:
        hu = float(hu + blood if hu == BLOOD else hu)
        points = np.array(shape, dtype=float)
        if points.ndim == 1:
            points += np.concatenate([rng.normal(0, 3, 3), points[3:6] * rng.normal(0, 0.05), [0]])
            parts.append((points, hu, role))
            continue
        points[:, :3] += rng.normal(0, 1.6, (len(points), 3))
        points[:, 3] *= rng.normal(1, 0.06)
        sides = (-1, 1) if role in ("both sides", "bones") else (1,)
        for path in (points * (side, 1, 1, 1) for side in sides):
            parts += [(np.stack(ends), hu, role) for ends in zip(path, path[1:], strict=False)]
    for path in (np.array(v, dtype=float) for v in (TRACHEA, RIGHT_BRONCHUS, LEFT_BRONCHUS)):
        parts += [(np.stack(ends), 30.0, "airway") for ends in zip(path, path[1:], strict=False)]
    return parts


def at(z, levels, values):
    return float(np.interp(z, levels, values))


def _lobe(centre, width):
    return np.exp(-(((SIDE_ANGLE - centre) / width) ** 2))


def wall_layers(z, patient):
    """Radii over the angle (mm): cavity, rib layer, inner muscle, gap, muscle, body surface."""
    front, back = at(z, LEVELS, TO_FRONT), at(z, LEVELS, TO_BACK)
    sin, cos = np.sin(np.radians(ANGLES)), np.cos(np.radians(ANGLES))
    cavity = np.abs(sin / at(z, LEVELS, HALF_WIDTH)) ** 2.25
    cavity = (cavity + np.abs(cos / np.where(cos > 0, front, back)) ** 2.25) ** (-1 / 2.25)
    cavity += 1.3 * patient.wall[0] + 5 * _lobe(146, 16) - 8 * _lobe(180, 14)
    inner = 3 + 4 * _lobe(100, 40) + 8 * _lobe(180, 12)
    inner += _lobe(166, 17) * at(z, [-200, 0, 100], [30, 24, 26])
    gap = _lobe(78, 24) * at(z, [-20, 40, 80, 130], [0, 14, 24, 10])
    gap += np.maximum(0.2, patient.wall[2])
    outer = 2 + _lobe(44, 22) * at(z, [-70, -20, 20, 60, 95, 120], [1, 5, 13, 17, 12, 0])
    outer += _lobe(122, 24) * at(z, [-160, -60, 0, 40, 100], [4, 9, 16, 26, 22])
    outer += _lobe(142, 15) * at(z, [-250, -100, 60], [6, 6, 5])
    outer += _lobe(92, 24) * at(z, [30, 70, 105, 160], [0, 28, 78, 86])
    outer += _lobe(20, 70) * at(z, [-150, -90], [8, 0])
    fat = 0.75 + 0.5 * _lobe(30, 50) * at(z, [-200, -60], [1.6, 0.4]) + 0.14 * patient.wall[3]
    fat += 0.5 * _lobe(138, 22)
    fat = patient.fat * np.maximum(fat, 0.3)
    fat += patient.breast * np.exp(-((np.abs(SIDE_ANGLE - 50) / 33) ** 3) - ((z + 26) / 44) ** 2)
    inner += cavity + 9
    gap += inner
    outer = gap + outer * patient.muscle
    surface = outer + np.maximum(fat, 2) + 2
    table = 0.96 * (surface * -cos).max() / np.maximum(-cos, 1e-3)  # the patient lies on it
    surface = np.minimum(surface, table)
    muscles = [np.minimum(v, surface - 4) for v in (inner, gap, outer)]
    return [v.astype(np.float32) for v in (cavity, cavity + 9, *muscles, surface)]


def paint(image, distance, hu, pixel):
    """Blend `hu` into image where distance (mm) is negative; the edge is one pixel wide."""
    image += np.clip(0.5 - distance * (1 / pixel), 0, 1) * (hu - image)


def paint_bone(image, distance, hu, marrow, pixel):
    paint(image, distance, hu, pixel)
    paint(image, distance + 1.8, marrow, pixel)


def smooth_min(a, b, width):
    overlap = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * (0.25 / width)


def distance(x, y, z, part):
    """Distance (mm) in slice z from a cone ((2, 4): x, y, z, radius) or a ball ((7,))."""
    if np.ndim(part) == 2:
        (x0, y0, z0, r0), (dx, dy, dz, dr) = part[0].tolist(), (part[1] - part[0]).tolist()
        x, y, z = x - x0, y - y0, z - z0
        along = (x * dx + y * dy + z * dz) * (1 / (dx * dx + dy * dy + dz * dz + 1e-6))
        along = np.clip(along, 0, 1)
        square = (x - along * dx) ** 2 + (y - along * dy) ** 2 + (z - along * dz) ** 2
        return np.sqrt(square) - (r0 + along * dr)
    cx, cy, cz, a, b, c, turn = map(float, part)
    cos, sin = float(np.cos(np.radians(turn))), float(np.sin(np.radians(turn)))
    x, y, z = x - cx, y - cy, z - cz
    u, v, w = ((cos * x - sin * y) / a) ** 2, ((sin * x + cos * y) / b) ** 2, (z / c) ** 2
    first = np.sqrt(u + v + w)
    return first * (first - 1) / (np.sqrt(u / a**2 + v / b**2 + w / c**2) + 1e-4)


def near(parts, z, plane, reach):
    """Yield (window, distance, HU, role) of the parts within `reach` mm of level z."""
    for part, hu, role in parts:
        if part.ndim == 2:
            size = part[:, 3].max() + reach
            low, high = part[:, :3].min(axis=0) - size, part[:, :3].max(axis=0) + size
        else:
            size = np.array([part[3:5].max(), part[3:5].max(), part[5]]) + reach
            low, high = part[:3] - size, part[:3] + size
        if low[2] < z < high[2]:
            box = plane.window(low[0], high[0], low[1], high[1])
            yield box, distance(plane.x[box], plane.y[box], z, part), hu, role
