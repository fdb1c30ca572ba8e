"""Drawing of the phantom's anatomy, slice by slice: chest wall, bones, organs, lungs' outline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.phantom.shapes import (
    AIR,
    ANGLES,
    FAT,
    LEVELS,
    MUSCLE,
    RIB_STEP,
    SIDE_ANGLE,
    TO_FRONT,
    Plane,
    at,
    distance,
    near,
    paint,
    paint_bone,
    smooth_min,
    wall_layers,
)


@dataclass
class Anatomy:
    """Result of draw_anatomy: arrays (D, H, W) float32 and the frame that places them."""

    tissue: np.ndarray  # HU of everything but the lungs' inside
    lung: np.ndarray  # share of a voxel that is lung, 0..1
    depth: np.ndarray  # distance from the chest wall or diaphragm, reference mm
    plane: Plane
    levels: np.ndarray  # (D,) z of the slices, reference mm


def stretch(field, matrix):
    """Linear interpolation of a (h, w) array to (matrix, matrix)."""
    for axis in (0, 1):
        position = np.linspace(0, field.shape[axis] - 1, matrix, dtype=np.float32)
        low = np.minimum(position.astype(np.intp), field.shape[axis] - 2)
        weight = np.expand_dims(position - low.astype(np.float32), 1 - axis)
        first = field.take(low, axis)
        field = first + weight * (field.take(low + 1, axis) - first)
    return field


def draw_anatomy(patient, levels, matrix, spacing, fields) -> Anatomy:
    """Draw all slices.

    levels: (D,) z of the slices, reference mm. spacing: in-plane, mm.
    fields: (D, h, w) smooth noise of about unit variance, for fat planes, bowel and glands.
    """
    plane = Plane(matrix, spacing, patient)
    shape = (len(levels), matrix, matrix)
    anatomy = Anatomy(*(np.zeros(shape, np.float32) for _ in range(3)), plane, levels)
    for k, z in enumerate(levels.tolist()):
        layers, noise = wall_layers(z, patient), stretch(fields[k], matrix)
        _draw_wall(anatomy.tissue[k], plane, z, layers, noise)
        _draw_inside(anatomy, k, z, layers, noise)
    return anatomy


def _draw_wall(hu, plane, z, layers, noise):
    """Skin, fat, muscles, ribs and shoulder bones of one slice, into hu (H, W)."""
    hu[:] = AIR
    patient, pixel, bone = plane.patient, plane.pixel, plane.patient.bone
    angle = np.radians(ANGLES)
    side, front = layers[5] * np.sin(angle), -layers[5] * np.cos(angle)
    box = plane.window(side.min() - 3, side.max() + 3, front.min() - 3, front.max() + 3)
    view, noise, turn = hu[box], noise[box], plane.angle[box]
    cavity, rib, inner, gap, outer, surface = (plane.radius[box] - v.take(turn) for v in layers)
    paint(view, surface, 15.0, pixel)
    paint(view, surface + 2, FAT, pixel)
    if patient.breast:
        gland = np.maximum(np.maximum(surface + 9, 6 - outer), plane.y[box] + 20)
        paint(view, np.maximum(gland, 4 - 6 * noise), 20.0, pixel)
    paint(view, outer, MUSCLE, pixel)
    fat_planes = np.abs(noise) * 9 - at(z, [60, 110], [0.8, 3.2])
    paint(view, np.maximum(np.maximum(fat_planes, outer + 1.5), 1.5 - rib), -70.0, pixel)
    paint(view, gap, FAT, pixel)
    paint(view, inner, MUSCLE, pixel)
    half, cartilage = (v.take(turn) for v in _rib_half_thickness(z))
    ribs = np.abs(cavity - 5) - half
    paint_bone(view, ribs, 650 * bone - cartilage * (650 * bone - 110),
               240 * bone - cartilage * (240 * bone - 95), pixel)  # fmt: skip
    for box, limb, value, role in near(_shoulder(z, layers, patient.arms_down), z, plane, 12):
        if role == "flesh":
            paint(hu[box], limb, value, pixel)
            continue
        if role == "blade":
            skin = plane.radius[box] - layers[5].take(plane.angle[box])
            paint(hu[box], np.maximum(limb - 8, skin + 4), MUSCLE, pixel)
        paint_bone(hu[box], limb, value * bone, 0.45 * value * bone, pixel)


def _rib_half_thickness(z):
    """Over the angle: half thickness (mm) of the ribs cut at level z; 1 where it is cartilage."""
    number = np.arange(1, 13)[:, None]
    descent = np.minimum(42 + 9 * number, 100) * ((180 - SIDE_ANGLE) / 150) ** 0.85
    gap = np.abs(z - (108 - RIB_STEP * (number - 1) - descent))
    end = np.where(number < 11, 20 if z > -60 else 34, 95)
    gap = np.where(end > SIDE_ANGLE, 99, gap).min(axis=0)
    half = 4.6 * np.sqrt(np.maximum(0, 1 - (gap / 6.5) ** 2))
    cartilage = at(z, [-120, 40], [52, 32]) > SIDE_ANGLE
    return half.astype(np.float32), cartilage.astype(np.float32)


def _shoulder(z, layers, arms_down):
    """Cones (part, HU, role) of shoulder blades and upper arms, placed in the wall's layers."""

    def place(side, angle, radius, thickness, level=z):
        angle = np.radians(angle)
        return np.array((side * np.sin(angle) * radius, -np.cos(angle) * radius, level, thickness))

    def radius(angle, layer):
        return float(layers[layer][int((angle + 180) * 4)])

    parts = []
    for side in (-1, 1):
        arm = radius(94, 4) - 34
        ends = place(side, 94, arm, 24, 128), place(side, 94, arm + 12, 15, 175)
        parts.append((np.stack(ends), 330.0, "arm"))
        if arms_down and z < 112:
            beside = min(radius(100, 5), 175) + at(z, [50, 110], [40, 0])
            for value, size, role in ((FAT, 42, "flesh"), (MUSCLE, 36, "flesh"), (600, 11, "arm")):
                parts.append((np.stack([place(side, 100, beside, size)] * 2), value, role))
        if -45 < z < 112:
            medial = at(z, [-45, 10, 112], [136, 152, 150])
            lateral = 0.55 * radius(112, 3) + 0.45 * radius(112, 4)
            start = place(side, medial, radius(medial, 2) + 4, 2.2)
            end = place(side, 112, lateral, at(z, [-45, 40, 90], [2.5, 4.5, 9]))
            parts.append((np.stack([start, end]), 520.0, "blade"))
            if z > 45:
                spine = place(side, 128, 0.9 * radius(128, 4), 3.5)
                parts.append((np.stack([0.55 * start + 0.45 * end, spine]), 520.0, "blade"))
    return parts


def _draw_inside(anatomy, k, z, layers, noise):
    """Everything within the ribs of one slice, the spine and the breastbone."""
    plane, patient, pixel = anatomy.plane, anatomy.plane.patient, anatomy.plane.pixel
    hu = anatomy.tissue[k]
    box = plane.window(-150, 150, -108, 108)
    x, y = plane.x[box], plane.y[box]
    cavity = plane.radius[box] - layers[0].take(plane.angle[box])
    paint(hu[box], cavity, FAT + 25 * np.clip(noise[box], -0.5, 2.5), pixel)
    below = np.full_like(plane.x, -99.0)
    below[box] = _diaphragm(x, y, z, patient.expiration)
    if below[box].max() > -3:
        _paint_abdomen(hu[box], x, y, z, cavity, below[box], noise[box], pixel)
    mediastinum, heart = np.full_like(plane.x, 99.0), np.full_like(plane.x, 99.0)
    front = at(z, LEVELS, TO_FRONT)
    slab = 4 + 13 * np.exp(-(((y - 8) / 34) ** 2)) + 9 * np.exp(-(((y + front) / 9) ** 2))
    spine = (np.hypot(x / 23, (y - _spine_y(z)) / 21) - 1) * 22
    mediastinum[box] = smooth_min(np.abs(x - 2) - slab - at(z, [50, 110], [0, 7]), spine, 10)
    lumina = []
    for part, gap, value, role in near(patient.parts, z, plane, 16):
        if role == "bones":
            paint_bone(hu[part], gap, value * patient.bone, 250 * patient.bone, pixel)
            continue
        if role == "abdomen":
            gap = np.maximum(gap, 5 - below[part])
            paint(hu[part], gap - 3, FAT, pixel)
        if role == "heart":
            heart[part] = gap = smooth_min(heart[part], gap, 12)
        if role == "airway":
            lumina.append((part, gap))
            gap = gap - 1.6
        if role in ("mediastinum", "heart", "airway"):
            mediastinum[part] = smooth_min(mediastinum[part], gap - 2.2, 10)
        paint(hu[part], gap, value, pixel)
    for part, gap in lumina:
        paint(hu[part], gap, AIR + 15, pixel)
    _paint_spine(hu, plane, z, patient.bone)
    _paint_sternum(hu, plane, z, float(layers[0][len(ANGLES) // 2]), patient.bone)
    lung = np.maximum(np.maximum(cavity + 1.5, below[box]), 2 - mediastinum[box])
    if z > 20:
        tops = [distance(x, y, z, np.array((s * 49, 8, 20, 90, 100, 94, 0))) for s in (1, -1)]
        lung = np.maximum(lung, np.where(x > 0, *tops))
    anatomy.lung[k][box] = np.clip(0.5 - lung / pixel, 0, 1)
    anatomy.depth[k][box] = np.minimum(-cavity, -below[box])


def _diaphragm(x, y, z, expiration):
    """Distance (mm) from the diaphragm in slice z, positive below it; the right dome is higher."""
    height, slope = np.full_like(x, -1e3), np.ones_like(x)
    depth = np.where(y > -12, np.float32(1 / 98), np.float32(1 / 82))
    deep = ((y + 12) * depth) ** 2
    drop = 62 + np.clip((y + 30) / 80, 0, 1) * 36
    for centre, top in ((-68, -93), (70, -103), (6, -112)):
        square = ((x - centre) * (1 / 75)) ** 2 + deep
        here = top + expiration - drop * square * square
        slope = np.where(here > height, 1 + (drop / 20) ** 2 * square * square * square, slope)
        height = np.maximum(height, here)
    return (height - z) / np.sqrt(slope)


def _paint_abdomen(hu, x, y, z, cavity, below, bowel, pixel):
    """Diaphragm, bowel, stomach with its gas bubble, liver on the patient's right, in view `hu`."""
    inside = np.maximum(cavity + 3, 3 - below)
    loops = np.maximum(inside + 6, max(0, (z + 185) / 2) - 12 * bowel)
    stomach = np.maximum(inside + 2, distance(x, y, z, np.array((60, -16, -148, 50, 52, 50, 0))))
    liver = x - (50 - 0.75 * (y + 80) - 0.3 * max(0, -140 - z) + 5 * bowel)
    for gap, value in (
        (np.maximum(cavity, -below), MUSCLE),
        (inside, FAT),
        (loops + 8, 28.0),
        (loops + 23, -850.0),
        (stomach, 38.0),
        (stomach + 4, 20.0),
        (np.maximum(stomach + 4, y + 34), -990.0),
        (np.maximum(np.maximum(cavity + 2, 1 - below), 0.8 * liver), 58.0),
    ):
        paint(hu, gap, value, pixel)


def _spine_y(z):
    return at(z, [-300, -200, -100, 0, 60, 110, 170], [54, 60, 63, 60, 50, 38, 32])


def _paint_spine(hu, plane, z, bone):
    """Vertebral body or disc, arch, spinal canal, transverse and spinous processes."""
    box = plane.window(-56, 56, _spine_y(z) - 26, _spine_y(z) + 78)
    x, y, view, pixel = plane.x[box], plane.y[box] - _spine_y(z), hu[box], plane.pixel
    phase = (z - 108) / RIB_STEP % 1
    reach = at(abs(phase - 0.5), [0, 0.2, 0.35], [0, 20, 40])
    tip = 36 + 22 * abs(phase - 0.4) ** 0.5
    processes = [[(0, 33, 0, 4.5), (0, tip, 0, 2.5)]]
    for side in (-1, 1):
        end = (side * (12 + reach), 24 + 0.35 * reach, 0, 4.2)
        processes.append([(side * 11, 23, 0, 6), end])
    for process in processes:
        paint_bone(view, distance(x, y, 0.0, np.array(process, dtype=float)), 560 * bone,
                   240 * bone, pixel)  # fmt: skip
    paint(view, (np.hypot(x / 15.5, (y - 23) / 13) - 1) * 14, 540 * bone, pixel)
    body = (np.hypot(x / 18.5, y / 15) - 1) * 16.5 - 16 * at(z, [-300, 110], [0.2, -0.15])
    if abs(phase - 0.5) < 0.13:
        paint_bone(view, body, 180.0, 85.0, pixel)
    else:
        paint_bone(view, body, 620 * bone, 190 * bone, pixel)
    paint(view, (np.hypot(x / 10, (y - 23) / 8.2) - 1) * 9, 32.0, pixel)


def _paint_sternum(hu, plane, z, front, bone):
    half = at(z, [-98, -80, -60, 28, 42, 70, 80], [0, 6, 14, 17, 27, 29, 0])
    if half > 0:
        box = plane.window(-45, 45, -front - 20, -front + 6)
        x, y = np.abs(plane.x[box]) - half, np.abs(plane.y[box] + front + 6) - 5.5
        gap = np.maximum(x, y) + 0.25 * np.minimum(np.abs(x), np.abs(y))
        paint_bone(hu[box], gap, 560 * bone, 170 * bone, plane.pixel)


class Bedding:
    """A cushion under the patient and a blanket over the chest, as dense as lung or denser.

    Outside the body they mean nothing; they only keep a histogram of the whole scan from
    telling much about the lungs.
    """

    def __init__(self, rng, pixel):
        self.cushion, self.blanket = rng.uniform(-900, -250, 2)
        self.rows = round(rng.uniform(0, 16) / pixel)

    def cover(self, image, under):
        """Draw both into one slice (H, W) of HU, in place; under: where a cushion can lie."""
        body = image > -300
        below_skin = np.logical_or.accumulate(body, axis=0)
        above_back = np.logical_or.accumulate(body[::-1], axis=0)[::-1]
        image[below_skin & ~above_back & under] = self.cushion
        raised = np.zeros_like(body)
        raised[: len(body) - self.rows] = below_skin[self.rows :]
        image[raised & ~below_skin] = self.blanket
