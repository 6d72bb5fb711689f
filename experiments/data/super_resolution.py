"""Images for super-resolution: luma pairs of low and high resolution, patches, PSNR.

A set is a folder of PNG files. There are no small images: they are made here, by
antialiased bicubic reduction of the luma and rounding to 8 bits, as a camera would
store them. Pillow's bicubic is not bit-equal to MATLAB's, so that a PSNR may differ
from a paper's in the second decimal.

References:
  ITU-R BT.601: luma from red, green and blue.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.dataset import DataError, find_folder, rgb

_HOW = "It is a folder of PNG files: T91 to train on, Set5 and Set14 to test on."
_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255


class Pair(NamedTuple):
    """One image: luma [height, width] float32 in 0..1, small and large."""

    name: str
    small: np.ndarray
    large: np.ndarray


def luma(pixels: np.ndarray) -> np.ndarray:
    """BT.601 luma of 8-bit pixels, 16/255 to 235/255.

    Args:
      pixels: [height, width, 3] red, green, blue, or [height, width] grey (which counts
        as three equal colors).
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return ((16 + pixels.astype(np.float64) @ _WEIGHTS) / 255).astype(np.float32)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic, antialiased when it shrinks; float32, not rounded."""
    from PIL import Image

    size = (width, height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def rounded(image: np.ndarray) -> np.ndarray:
    """What 8 bits hold of an image in 0..1."""
    return (np.round(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)


def pair(name: str, large: np.ndarray, scale: int) -> Pair:
    """An image cut to multiples of the scale, and its reduction."""
    height, width = (side - side % scale for side in large.shape)
    large = large[:height, :width]
    small = rounded(resize(large, height // scale, width // scale))
    return Pair(name, small, large)


def load_set(name: str, scale: int, data_dir: str | None = None) -> list[Pair]:
    """All images of one set, by name.

    Args:
      name: of the folder: "T91", "Set5" or "Set14".
      scale: by how much the small image is smaller.
      data_dir: the folder of the sets; None as in `find_folder`.

    Raises:
      DataError: if there is no such folder, nothing in it, or a file is no image.
    """
    folder = find_folder(data_dir, name, _HOW) / name
    files = sorted(Path(folder).glob("*.png"))
    if not files:
        raise DataError(f"no PNG file in {folder}. {_HOW}")
    found = []
    for file in files:
        try:
            large = luma(rgb(file))
        except DataError as error:
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        if min(large.shape) < 4 * scale:
            raise DataError(
                f"{file} has {large.shape[1]} x {large.shape[0]} pixels, too few to "
                f"be made {scale} times smaller."
            )
        found.append(pair(file.stem, large, scale))
    return found


def patches(pairs: list[Pair], side: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """All squares on a grid, [n, side, side] small and [n, s side, s side] large.

    Args:
      pairs: the images.
      side: of a small patch; an image below it gives none.
      stride: between two small patches.

    Raises:
      DataError: if no image is large enough for one.
    """
    small, large = [], []
    for _, low, high in pairs:
        scale = len(high) // len(low)
        for y in range(0, low.shape[0] - side + 1, stride):
            for x in range(0, low.shape[1] - side + 1, stride):
                small.append(low[y : y + side, x : x + side])
                top, left, wide = scale * y, scale * x, scale * side
                large.append(high[top : top + wide, left : left + wide])
    if not small:
        raise DataError(f"no image has a patch of {side} x {side} small pixels.")
    return np.stack(small), np.stack(large)


def psnr(found: np.ndarray, wanted: np.ndarray, shave: int) -> float:
    """Peak signal-to-noise ratio in dB, peak 1, without a border of `shave` pixels.

    Both are rounded to 8 bits first, as in the papers' tables.
    """
    inner = slice(shave, -shave or None)
    error = (
        rounded(found)[inner, inner].astype(np.float64) - rounded(wanted)[inner, inner]
    )
    power = float(np.mean(error**2))
    return float(-10 * np.log10(power)) if power else float("inf")
