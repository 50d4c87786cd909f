"""Image operations of augmentation policies, with magnitudes per image.

Images are uint8 (B, 3, H, W) before and after an operation. Magnitudes are float32 (B,) on their
device. On a CPU each operation gives the same bytes as torchvision's, which has one magnitude for a
whole batch. Only bilinear resampling may differ by 1 in at most one byte of 500, because the last
bit of torchvision's matrix product depends on the processor. Nothing here is a matrix product or a
convolution, which autocast would compute in fewer bits.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodules.colour import luma

Interpolation = Literal["nearest", "bilinear"]
Floats = NDArray[np.float64]


def affine_matrices(amounts: Floats, height: int, width: int) -> Floats:
    """Return matrices (B, 2, 3) of shears, translations or rotations.

    `amounts` (5, B) has five rows: the slopes of shears along x and y, the pixels of translations
    along x and y, and the degrees of rotations. Shears keep the top left corner. Rotations are
    counter-clockwise around the centre. At most one of the five is not 0 in an image.

    They are computed on the host in 64 bits, as in torchvision. In a rotation by 45 degrees the
    last bit decides between two equally near pixels.
    """
    shear_x, shear_y, translate_x, translate_y, degrees = amounts
    angle = -np.radians(degrees % 360)
    cos, sin = np.cos(angle), np.sin(angle)
    x = [cos, sin + shear_x, shear_x * height / 2 - translate_x]
    y = [shear_y - sin, cos, shear_y * width / 2 - translate_y]
    return np.stack([*x, *y], axis=1).reshape(-1, 2, 3)


def affine(images: Tensor, matrices: Tensor, interpolation: Interpolation) -> Tensor:
    """Resample each image through its matrix, with black outside the image.

    `matrices` float32 (B, 2, 3) map homogeneous positions (x, y, 1) of the output to positions of
    the input, in pixels from the centre of the image.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    y = (torch.arange(height, device=images.device) + (0.5 - height / 2))[:, None]
    # In the unit of grid_sample, whose borders are -1 and 1, because torchvision rounds in it.
    along_x, along_y, constant = matrices[..., None, None].unbind(2)
    u = along_x[:, 0] / (width / 2) * x + along_y[:, 0] / (width / 2) * y
    v = along_x[:, 1] / (height / 2) * x + along_y[:, 1] / (height / 2) * y
    u, v = u + constant[:, 0] / (width / 2), v + constant[:, 1] / (height / 2)
    if interpolation == "bilinear":
        pixels, grid = images.to(torch.float32), torch.stack([u, v], dim=-1)
        sampled = F.grid_sample(pixels, grid, "bilinear", "zeros", align_corners=False)
        return sampled.round_().to(torch.uint8)
    column = (((u + 1) * width - 1) / 2).round_().to(torch.int64)
    row = (((v + 1) * height - 1) / 2).round_().to(torch.int64)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    # On a CPU, grid_sample takes ten times as long as gather, and accepts only floats.
    index = (row * width + column).masked_fill_(outside, 0).flatten(1)[:, None]
    sampled = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1))
    return sampled.unflatten(2, (height, width)).masked_fill_(outside[:, None], 0)


def _blend(images: Tensor, plain: Tensor, magnitude: Tensor) -> Tensor:
    """Return images * (1 + magnitude) - plain * magnitude.

    addcmul rounds product and sum once, like torchvision's `add_` with `alpha`. Two roundings would
    change some pixels by one level.
    """
    magnitude = magnitude[:, None, None, None]
    scaled = images.to(torch.float32).mul_(1 + magnitude)
    return torch.addcmul(scaled, plain, -magnitude).clamp_(0, 255).to(torch.uint8)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Apply `adjust_brightness` with factor 1 + magnitude."""
    factor = 1 + magnitude[:, None, None, None]
    return images.to(torch.float32).mul_(factor).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Apply `adjust_saturation` with factor 1 + magnitude."""
    return _blend(images, luma(images).floor_(), magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Apply `adjust_contrast` with factor 1 + magnitude."""
    return _blend(images, luma(images).floor_().mean((1, 2, 3), keepdim=True), magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Apply `adjust_sharpness` with factor 1 + magnitude.

    Except at the border, it moves pixels away from a 3 x 3 blur with weights 5/13 for the centre
    and 1/13 for each neighbour. Sums of whole numbers are exact in any order.
    """
    sharp = images.to(torch.float32)
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    inner = sharp[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    difference = total.div_(13).round_().sub_(inner)
    inner.addcmul_(difference, -magnitude[:, None, None, None])
    return sharp.clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` of the eight bits of each channel."""
    dropped = 2 ** (8 - bits) - 1
    return images & (255 - dropped).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert all values that are not below `threshold`."""
    return torch.where(images >= threshold[:, None, None, None], 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image to the full range, if it has two values."""
    pixels = images.to(torch.float32)
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    unit = (high - low).mul_(1 / 255)
    # Unlike torchvision's function, without boolean indexing, which would synchronise.
    low, unit = torch.where(high == low, 0.0, low), torch.where(high == low, 1.0, unit)
    return pixels.sub_(low).div_(unit).clamp_(0, 255).to(torch.uint8)
