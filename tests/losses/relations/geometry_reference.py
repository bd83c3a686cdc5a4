"""RKD in plain NumPy float64, with its gradient written out, and none between points that coincide."""

import numpy as np


def smooth_l1(gap):
    gap = np.abs(gap)
    return np.where(gap < 1, 0.5 * gap**2, gap - 0.5)


def distances(features):
    features = np.float64(features)
    found = np.linalg.norm(features[:, None] - features[None], axis=2)
    found = np.maximum(found, 1e-6)
    np.fill_diagonal(found, 0)
    return found


def directions(features):
    """`[i, j]`: from point i to point j, of length 1; zero where they coincide."""
    features = np.float64(features)
    gaps = features[None] - features[:, None]
    norms = np.linalg.norm(gaps, axis=2, keepdims=True)
    return np.where(norms > 1e-12, gaps / np.where(norms > 1e-12, norms, 1), 0)


def relative_distances(features, squared=False):
    found, count = distances(features) ** (1 + squared), len(features)
    return found / (found.sum() / max(count * (count - 1), 1) or 1)


def distance_rows(student, teacher):
    return smooth_l1(relative_distances(student) - relative_distances(teacher)).mean(1)


def cosines(features):
    found = directions(features)
    return np.einsum("ajd,akd->ajk", found, found)


def angle_rows(student, teacher):
    return smooth_l1(cosines(student) - cosines(teacher)).mean((1, 2))


def rkd_gradient(student, teacher, distance=25.0, angle=50.0, squared=False):
    """By the student, of the mean of `distance * distance_rows + angle * angle_rows`."""
    student, count = np.float64(student), len(student)
    gradient = np.zeros_like(student)
    apart, lines = distances(student), directions(student)
    raw, by_apart = (apart**2, 2 * apart) if squared else (apart, np.ones_like(apart))
    mean = raw.sum() / (count * (count - 1))
    slope = np.clip(relative_distances(student, squared) - relative_distances(teacher, squared), -1, 1) / count**2
    by_raw = slope / mean - np.sum(slope * raw) / mean**2 / (count * (count - 1))
    bend = np.clip(cosines(student) - cosines(teacher), -1, 1) / count**3
    for i in range(count):
        for j in range(count):
            if np.linalg.norm(student[i] - student[j]) <= 1e-12:
                continue
            pull = distance * by_raw[i, j] * by_apart[i, j] * lines[i, j]
            for k in range(count):
                # The angle at i between j and k moves with j; the factor 2 is for k, by symmetry.
                across = lines[i, k] - (lines[i, j] @ lines[i, k]) * lines[i, j]
                pull = pull + 2 * angle * bend[i, j, k] * across / apart[i, j]
            gradient[j] += pull
            gradient[i] -= pull
    return gradient
