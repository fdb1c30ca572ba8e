"""The phantom's lungs: vessels and airways, what disturbs a healthy scan, and COVID-19 lesions."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.special import expit

from helpers.phantom.body import stretch

# share of the lung involved: the classes' thresholds of MosMedData, kept a little away from them
INVOLVED = {"CT-1": (0.05, 0.22), "CT-2": (0.27, 0.47), "CT-3": (0.52, 0.72), "CT-4": (0.77, 0.9)}
N_POINTS = 512  # that the vessels of a lung reach


def smooth_noise(rng, shape, sigma):
    """Gaussian noise of unit variance, float32, smooth over `sigma` samples per axis."""
    field = rng.standard_normal(shape, dtype=np.float32)
    field = ndimage.gaussian_filter(field, sigma, truncate=3)
    return field / field.std()


class LungFrame:
    """Coarse (D, h, w) grid of reference coordinates and depth below the pleura, all mm."""

    def __init__(self, anatomy):
        matrix = anatomy.plane.matrix
        self.step = max(1, matrix // 96)
        coarse = (slice(None, None, self.step),) * 2
        self.x, self.y = anatomy.plane.x[coarse], anatomy.plane.y[coarse]
        self.z = anatomy.levels[:, None, None]
        self.depth = anatomy.depth[(slice(None), *coarse)]
        self.lung = anatomy.lung[(slice(None), *coarse)] > 0.5
        self.shape = self.lung.shape
        self.cell = anatomy.plane.pixel * self.step
        self.slice_gap = float(np.ptp(anatomy.levels)) / max(len(anatomy.levels) - 1, 1)
        self.inside = np.argwhere(self.lung)

    def noise(self, rng, size):
        """Unit noise whose patches are about `size` mm large."""
        sigma = 0.4 * size / self.cell
        return smooth_noise(rng, self.shape, (0.4 * size / self.slice_gap, sigma, sigma))

    def points(self, rng, n_points, weight=None):
        """(n, 3) x, y, z of random places in the lungs, mm, drawn in proportion to weight."""
        chance = None
        if weight is not None:
            chance = weight[tuple(self.inside.T)].astype(np.float64)
            chance /= chance.sum()
        k, i, j = self.inside[rng.choice(len(self.inside), n_points, p=chance)].T
        return np.stack([self.x[i, j], self.y[i, j], self.z[k, 0, 0]], axis=1)

    def distance(self, centre, radii):
        """Distance from centre in units of the radii (x, y, z), on the coarse grid."""
        square = ((self.x - centre[0]) / radii[0]) ** 2 + ((self.y - centre[1]) / radii[1]) ** 2
        return np.sqrt(square + ((self.z - centre[2]) / radii[2]) ** 2, dtype=np.float32)


def grow_tree(rng, root, points, root_radius):
    """Grow a branching tree from root to every point by halving the points again and again.

    root: (3,) mm. points: (2**levels, 3) mm. Returns segments (n, 2, 4): x, y, z, radius.
    """
    groups, nodes, radius = points[None], np.asarray(root, np.float32)[None], root_radius
    segments = []
    while True:
        centre = groups.mean(axis=1)
        last = groups.shape[1] == 1
        share = 1.0 if last else rng.uniform(0.42, 0.62, (len(nodes), 1))
        ends = nodes + share * (centre - nodes)
        if not last:
            ends = ends + rng.normal(0, 0.07, ends.shape) * np.linalg.norm(
                centre - nodes, axis=1, keepdims=True
            )
        thin = radius * 2 ** (-1 / 2.7)
        start = np.column_stack([nodes, np.full(len(nodes), radius)])
        segments.append(np.stack([start, np.column_stack([ends, np.full(len(ends), thin)])], 1))
        if last:
            return np.concatenate(segments).astype(np.float32)
        axis = np.ptp(groups, axis=1).argmax(axis=1)
        along = np.take_along_axis(groups, axis[:, None, None], axis=2)[..., 0]
        order = np.argsort(along, axis=1, kind="stable")
        groups = np.take_along_axis(groups, order[..., None], axis=1)
        groups = groups.reshape(len(groups) * 2, -1, 3)
        nodes, radius = np.repeat(ends, 2, axis=0), thin


def splat(segments, anatomy):
    """Share of each voxel covered by thin tubes: (D, H, W) float32 of 0..1."""
    plane, levels = anatomy.plane, anatomy.levels
    volume = np.zeros(anatomy.lung.shape, np.float32)
    length = np.linalg.norm(segments[:, 1, :3] - segments[:, 0, :3], axis=1)
    count = (
        np.ceil(length / np.maximum(0.45 * segments[:, 1, 3], 0.4 * plane.pixel)).astype(int) + 1
    )
    owner = np.repeat(np.arange(len(segments)), count)
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    share = (place / np.maximum(count[owner] - 1, 1)).astype(np.float32)[:, None]
    points = segments[owner, 0] * (1 - share) + segments[owner, 1] * share
    gap = levels[1] - levels[0]
    near = np.rint((points[:, 2] - levels[0]) / gap).astype(int)
    for offset in (-1, 0, 1):
        k = near + offset
        use = (k >= 0) & (k < len(levels))
        height = np.where(use, points[:, 2] - levels[np.clip(k, 0, len(levels) - 1)], 1e3)
        square = points[:, 3] ** 2 - height**2
        use &= square > 0.02
        _splat_discs(volume, plane, k[use], points[use], np.sqrt(square[use]))
    return volume


def _splat_discs(volume, plane, k, points, radius):
    row, column = plane.to_pixels(points[:, 0], points[:, 1])
    radius = radius / plane.pixel
    reach = np.ceil(radius + 0.5).astype(int)
    size = volume.shape[1]
    for half in np.unique(2 ** np.ceil(np.log2(np.maximum(reach, 1))).astype(int)):
        chosen = (reach <= half) & (reach > half // 2) if half > 1 else reach <= 1
        chosen &= (row > half + 1) & (row < size - half - 2)
        chosen &= (column > half + 1) & (column < size - half - 2)
        r, c, rad = row[chosen, None], column[chosen, None], radius[chosen, None]
        dr, dc = np.mgrid[-half : half + 1, -half : half + 1].reshape(2, 1, -1)
        i, j = np.rint(r).astype(int) + dr, np.rint(c).astype(int) + dc
        cover = np.clip(rad + 0.5 - np.hypot(i - r, j - c), 0, 1) * np.minimum(1, 2 * rad)
        index = (k[chosen, None] * size + i) * size + j
        np.maximum.at(volume.reshape(-1), index.ravel(), cover.astype(np.float32).ravel())


def vessels_and_airways(rng, anatomy, frame):
    """Pulmonary arteries, veins and bronchi as coverage volumes: vessels, walls, lumina."""
    tubes, walls, lumina = [], [], []
    deep = np.clip((frame.depth - 3) / 6, 0, 1) * frame.lung
    for side in (-1, 1):
        half = deep * (frame.x * side > 0)
        if half.sum() < 50:
            continue
        artery = grow_tree(rng, (side * 40, 17, -16), frame.points(rng, N_POINTS, half), 8.4)
        vein = grow_tree(rng, (side * 24, 8, -44), frame.points(rng, N_POINTS, half), 7.8)
        shift = np.array((0.7 * side, 1.0, -0.7)) / np.sqrt(1.98)
        bronchus = artery[: 2**6 - 1].copy()
        bronchus[..., :3] += 1.5 * bronchus[..., 3:] * shift
        bronchus[..., 3] *= 0.56
        tubes += [artery, vein]
        lumina.append(bronchus)
        walls.append(bronchus + np.array((0, 0, 0, 0.9), np.float32))
    if not tubes:
        return (np.zeros(anatomy.lung.shape, np.float32),) * 3
    return tuple(splat(np.concatenate(v), anatomy) for v in (tubes, walls, lumina))


def disturbances(rng, frame, diseased, expiration, site):
    """HU of the aerated lung on the coarse grid, with all that is not COVID-19."""
    base = -872 + 3.2 * expiration + rng.normal(0, 16)
    hu = base + rng.uniform(10, 80) / 100 * (frame.y[None] + 0 * frame.z)
    hu += rng.uniform(5, 16) * frame.noise(rng, 9) + rng.uniform(5, 20) * frame.noise(rng, 60)
    mosaic = frame.noise(rng, rng.uniform(60, 120)) + 0.12 * frame.noise(rng, 14)
    mosaic += rng.uniform(0.3, 1.2) * np.clip(frame.depth / 30, 0, 1)
    amount = rng.uniform(0.05, 0.3) if diseased else rng.uniform(0.05, 0.4)
    height = rng.uniform(50, 150) if diseased else rng.uniform(70, 220)
    height = height * (1 + 0.16 * frame.noise(rng, 45))
    level = np.quantile(mosaic[frame.lung], 1 - amount)
    central = np.clip(frame.depth / rng.uniform(10, 22), 0, 1)
    hu += height * central * expit((mosaic - level) / rng.uniform(0.2, 0.45))
    band = rng.uniform(*site.atelectasis) * (1 + 0.35 * frame.noise(rng, 40))
    low = np.clip((20 - frame.z) / 120, 0, 1) * np.clip((frame.y - 25) / 40, 0, 1)
    hu += rng.uniform(100, 700) * low * expit((band + 2 - frame.depth) / 2)
    if rng.random() < site.emphysema:
        for centre in frame.points(
            rng, rng.integers(5, 30), np.clip(frame.z + 90, 1, 200) * frame.lung
        ):
            hole = frame.distance(centre, rng.uniform(4, 13, 3))
            hu += (-965 - hu) * 0.8 * np.clip(2.5 - 2.5 * hole, 0, 1)
    return np.clip(hu, -985, 45)


def nodules(rng, frame):
    """Centres and radii (n, 1, 2, 4 style segments) of a few solid nodules, for splat."""
    n_nodules = rng.poisson(1.0)
    centre = frame.points(rng, n_nodules)
    point = np.column_stack([centre, rng.uniform(2, 6, n_nodules)])
    return np.stack([point, point + np.array((0, 0, 0.5, 0))], axis=1).astype(np.float32)


def lesion_preference(rng, frame, category, site):
    """Where COVID-19 goes first: patches in both lungs, at home peripheral, posterior, basal."""
    weight = np.exp(-frame.depth / site.rim[0])
    weight = weight * (site.front + np.clip((frame.y + 40) / 110, 0, 1) ** 1.5)
    weight = weight * np.interp(frame.z, [-180, -60, 110], site.heights) * frame.lung
    low, high = {"CT-1": (5, 10), "CT-2": (9, 16), "CT-3": (12, 22), "CT-4": (16, 26)}[category]
    preference = np.full(frame.shape, -9, np.float32)
    n_patches = int(rng.integers(low, high) * site.n_foci)
    for number in range(n_patches):
        half = weight * (frame.x * (-1) ** number > 0)
        centre = frame.points(rng, 1, half if half.any() else weight)[0]
        radii = np.array((1, 1, 1.2)) * rng.uniform(*site.radius) * rng.uniform(0.75, 1.3, 3)
        np.maximum(preference, 1 - frame.distance(centre, radii), out=preference)
    preference -= np.maximum(frame.depth, 0) / site.rim[1]
    return preference + 0.2 * frame.noise(rng, 24) + 0.11 * frame.noise(rng, 10)


class Lesions:
    """Lesions of one study: where they are, and how they change the lung's HU slice by slice."""

    def __init__(self, rng, frame, category, lung, site):
        """lung: (D, H, W) bool. The extent is set so that the class's share of it is involved."""
        self.matrix = lung.shape[1]
        self.field = lesion_preference(rng, frame, category, site)
        fraction = rng.uniform(*INVOLVED[category])
        inside = [stretch(f, self.matrix)[m] for f, m in zip(self.field, lung, strict=True)]
        inside = np.concatenate(inside)
        self.level = np.quantile(inside, 1 - fraction)
        core = np.quantile(inside, 1 - fraction * rng.choice(site.dense_share))
        self.core = max(core, self.level + 0.2)
        self.soft = rng.uniform(*site.edge)
        self.clumps = 0.16 * frame.noise(rng, 12)
        self.opacity = rng.uniform(*site.opacity) * (
            1 + 0.16 * frame.noise(rng, 45) + 0.06 * frame.noise(rng, 7)
        )
        lines = np.clip(1 - np.abs(frame.noise(rng, 9)) / 0.35, 0, 1)
        self.lines = rng.uniform(0, 110) * lines * (frame.noise(rng, 70) > 0)

    def draw(self, k, hu):
        """Add the lesions to one slice of aerated lung, HU (H, W); returns HU and the mask."""
        field = stretch(self.field[k], self.matrix)
        share = np.clip((field - self.level) / (2 * self.soft) + 0.5, 0, 1)
        share = share * share * (3 - 2 * share)
        hu = hu + share * stretch((self.opacity + self.lines)[k], self.matrix)
        core = field + stretch(self.clumps[k], self.matrix) - self.core
        hu += np.clip(core / 0.3 + 0.5, 0, 0.95) * (np.float32(20) - hu)
        return np.minimum(hu, 45), field > self.level
