"""Images to distil on beside those of a data set: drawn from a model of them, or of another domain."""

from pathlib import Path

import numpy as np

from kdjax.data.fashion_mnist import CLASS_NAMES, embedded


def synthetic(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, rank: int = 40) -> np.ndarray:
    """As many new images as there are, of the same classes: drawn from a Gaussian for each class, of its mean and the `rank`
    directions in which it varies most.

    Args:
      images: `[N, H, W]` uint8.
      labels: `[N]`, of which each class has more than `rank`.
    """
    found = np.empty_like(images)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        flat = images[rows].reshape(len(rows), -1).astype(np.float64)
        mean = flat.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
        spread = np.sqrt(np.maximum(values[-rank:], 0))
        drawn = mean + (rng.normal(size=(len(rows), rank)) * spread) @ vectors[:, -rank:].T
        found[rows] = np.clip(np.rint(drawn), 0, 255).reshape(-1, *images.shape[1:])
    return found


def foreign(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images out of their domain: each turned by one to three quarters, every other one in negative too.

    Args:
      images: `[N, H, H]` uint8.
    """
    turns = rng.integers(1, 4, len(images))
    found = np.stack([np.rot90(image, turn) for image, turn in zip(images, turns, strict=True)])
    found[::2] = 255 - found[::2]
    return found


def written(path: Path, extra: np.ndarray) -> str:
    """A data set of the embedded training images and as many others, for objectives that read no labels; returns its name.

    Labels of the others are there to be shaped alike, and say nothing.
    """
    images, labels, _ = embedded("train")
    test_images, test_labels, _ = embedded("test")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, x_train=np.concatenate([images, extra])[..., None], y_train=np.concatenate([labels, labels[: len(extra)]]),
        x_test=test_images[..., None], y_test=test_labels, class_names=np.asarray(CLASS_NAMES),
    )  # fmt: skip
    return str(path.absolute())
