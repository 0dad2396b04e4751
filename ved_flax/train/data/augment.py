"""Light augmentation of text lines: what another scanner, pen or page would have changed."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ved_flax.train.data.config import DataConfig

if TYPE_CHECKING:
    from PIL.Image import Image


def augmented(image: "Image", rng: np.random.Generator, config: DataConfig) -> "Image":
    """An RGB image turned, slanted, scaled, blurred, lightened and made noisy, each within the config's limits.

    The result depends on image, config and the generator's state only. Nothing is cut off: the canvas grows, in the
    colour of the image's border.
    """
    from PIL import ImageFilter

    turn, shear, wider, higher, contrast, brightness = rng.uniform(-1, 1, 6).tolist()
    blur, noise = rng.uniform(0, 1, 2).tolist()
    image = _deformed(
        image,
        math.radians(config.augment_rotation) * turn,
        config.augment_shear * shear,
        1 + config.augment_scale * wider,
        1 + config.augment_scale * higher,
    )
    if config.augment_blur:
        image = image.filter(ImageFilter.GaussianBlur(config.augment_blur * blur))
    return _recoloured(
        image,
        1 + config.augment_contrast * contrast,
        128 * config.augment_contrast * brightness,
        config.augment_noise * noise,
        rng,
    )


def _deformed(image: "Image", angle: float, shear: float, wider: float, higher: float) -> "Image":
    from PIL.Image import Resampling, Transform

    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([wider, higher])
    corners = forward @ np.array([[0, image.width, 0, image.width], [0, 0, image.height, image.height]])
    low = corners.min(axis=1)
    size = np.maximum(1, np.ceil(corners.max(axis=1) - low - 1e-6)).astype(int)
    back = np.linalg.inv(forward)
    offset = back @ low
    return image.transform(
        (int(size[0]), int(size[1])),
        Transform.AFFINE,
        (*back[0], offset[0], *back[1], offset[1]),
        resample=Resampling.BICUBIC,
        fillcolor=_border(image),
    )


def _border(image: "Image") -> tuple[int, ...]:
    """The median colour of the outermost pixels."""
    pixels = np.asarray(image)
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    return tuple(int(value) for value in np.median(np.concatenate(edges), axis=0))


def _recoloured(image: "Image", contrast: float, shift: float, noise: float, rng: np.random.Generator) -> "Image":
    from PIL import Image

    pixels = np.asarray(image, np.float32)
    grain = rng.standard_normal(pixels.shape[:2], np.float32)[..., None]  # grey: a scanner's, not a camera's
    middle = pixels.mean(axis=(0, 1))
    pixels = (pixels - middle) * np.float32(contrast) + middle + np.float32(shift) + np.float32(noise) * grain
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
