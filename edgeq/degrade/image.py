"""What cameras, weather and transmission do to photos. Lengths are in percent of the shorter side.

All functions take and give 8-bit RGB images of the same size; noise and light act on the stored (gamma-coded) values
unless the docstring says linear light.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

Pixels = NDArray[np.float64]

QRID_KERNELS = {1: (3, 5), 2: (7, 9, 11)}
"""Sides of the blur kernels of QRID, in pixels: low and medium."""


def gaussian_noise(image: Image.Image, sigma: float, random: np.random.Generator) -> Image.Image:
    """Independent noise of standard deviation `sigma` (of 255) on every channel."""
    pixels = _pixels(image)
    return _image(pixels + random.normal(0, sigma, pixels.shape))


def grey_noise(image: Image.Image, sigma: float, random: np.random.Generator) -> Image.Image:
    """Noise of standard deviation `sigma` (of 255), one field for the three channels, as QRID draws it."""
    pixels = _pixels(image)
    return _image(pixels + random.normal(0, sigma, pixels.shape[:2])[..., None])


def shot_noise(image: Image.Image, photons: float, random: np.random.Generator) -> Image.Image:
    """Photon noise in linear light; white is `photons` photons a pixel and channel."""
    return _image(_coded(random.poisson(_linear(_pixels(image)) * photons) / photons))


def gaussian_blur(image: Image.Image, percent: float, random: np.random.Generator) -> Image.Image:
    """Defocus: a Gaussian of standard deviation `percent` of the shorter side."""
    del random
    return _blurred(image, percent / 100 * min(image.size))


def kernel_blur(image: Image.Image, level: float, random: np.random.Generator) -> Image.Image:
    """Gaussian blur with a kernel of QRID's sides (`QRID_KERNELS`), drawn evenly.

    The standard deviation belongs to the side as in OpenCV's `getGaussianKernel`: `0.3 ((side - 1) / 2 - 1) + 0.8`.
    """
    side = int(random.choice(QRID_KERNELS[int(level)]))
    pixels, sigma = _pixels(image), 0.3 * ((side - 1) / 2 - 1) + 0.8
    return _image(ndimage.gaussian_filter(pixels, sigma, axes=(0, 1), radius=side // 2, mode="mirror"))


def motion_blur(image: Image.Image, percent: float, random: np.random.Generator) -> Image.Image:
    """A straight, even movement over `percent` of the shorter side, in a random direction."""
    length = percent / 100 * min(image.size)
    angle, pixels = random.uniform(0, np.pi), _pixels(image)
    steps = max(2, int(np.ceil(2 * length)) + 1)
    moved = np.zeros_like(pixels)
    for t in np.linspace(-0.5, 0.5, steps) * length:
        shift = (t * np.sin(angle), t * np.cos(angle), 0)
        moved += ndimage.shift(pixels, shift, order=1, mode="nearest")
    return _image(moved / steps)


def contrast(image: Image.Image, factor: float, random: np.random.Generator) -> Image.Image:
    """Distances from the mean grey of the image are multiplied by `factor`."""
    del random
    pixels = _pixels(image)
    mean = pixels.mean()
    return _image(mean + factor * (pixels - mean))


def scaled_contrast(image: Image.Image, factor: float, random: np.random.Generator) -> Image.Image:
    """Values are multiplied by `factor`, which darkens: what QRID's library does at brightness 0."""
    del random
    return _image(factor * _pixels(image))


def low_light(image: Image.Image, stops: float, random: np.random.Generator) -> Image.Image:
    """An exposure `stops` below the right one in linear light, with the photon noise of 1,000 photons at full white."""
    photons = 1000.0
    exposed = _linear(_pixels(image)) * 2.0**-stops
    return _image(_coded(random.poisson(exposed * photons) / photons))


def jpeg(image: Image.Image, quality: float, random: np.random.Generator) -> Image.Image:
    """Baseline JPEG of `quality`, 4:2:0."""
    del random
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=round(quality), subsampling=2)
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        return opened.convert("RGB")


def pixelate(image: Image.Image, share: float, random: np.random.Generator) -> Image.Image:
    """A sensor with `share` of the pixels on each side: box averages, repeated."""
    del random
    small = (max(1, round(share * image.width)), max(1, round(share * image.height)))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def veil(image: Image.Image, transmission: float, random: np.random.Generator) -> Image.Image:
    """Haze before a scene of one depth: `transmission` of the light arrives, grey light (80 % of white) is added.

    Koschmieder's law in linear light. Depth is not known from a photo, so near and far things fade alike.
    """
    del random
    light = _linear(_pixels(image))
    return _image(_coded(transmission * light + (1 - transmission) * 0.8))


def _blurred(image: Image.Image, sigma: float) -> Image.Image:
    return _image(ndimage.gaussian_filter(_pixels(image), sigma, axes=(0, 1), mode="mirror"))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _linear(pixels: Pixels) -> Pixels:
    """Linear light, 0 to 1, of sRGB values (IEC 61966-2-1)."""
    coded = pixels / 255
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _coded(light: Pixels) -> Pixels:
    """Values of sRGB, 0 to 255, of linear light."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
