"""The image operations of augmentation policies, each image of a batch with its own magnitude.

Images are uint8 (B, 3, H, W), and so is what comes back; magnitudes are float32 (B,) on the device
of the images. On a CPU each operation equals torchvision's, which has one magnitude for a whole
batch, byte for byte on uint8, except bilinear resampling: there the processor decides the last bit
of torchvision's matrix product, and one byte in 500 at most differs, by one level. (Torchvision's
`equalize` has no magnitude, and is used.)
Nothing here is a matrix product or a convolution, which autocast would compute in fewer bits.
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
    """Matrices (B, 2, 3) for `affine`, of which each shears, or moves, or turns.

    The rows of `amounts` (5, B) are slopes of shears along x and y, which keep the top left corner,
    pixels of translations along x and y, and degrees of rotations, counter-clockwise about the
    centre. At most one of the five is other than 0 in an image.

    On the host and in 64 bits, as torchvision computes them: a rotation by 45 degrees takes pixels
    from exactly between two others, and the last bit decides from which one.
    """
    shear_x, shear_y, translate_x, translate_y, degrees = amounts
    angle = -np.radians(degrees % 360)
    cos, sin = np.cos(angle), np.sin(angle)
    x = [cos, sin + shear_x, shear_x * height / 2 - translate_x]
    y = [shear_y - sin, cos, shear_y * width / 2 - translate_y]
    return np.stack([*x, *y], axis=1).reshape(-1, 2, 3)


def affine(images: Tensor, matrices: Tensor, interpolation: Interpolation) -> Tensor:
    """Resample each image through its matrix, with black from outside.

    `matrices` float32 (B, 2, 3) take homogeneous positions (x, y, 1) of the output to those of the
    input, in pixels from the centre of the image.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    y = (torch.arange(height, device=images.device) + (0.5 - height / 2))[:, None]
    # grid_sample's unit, in which -1 and 1 are the borders, because torchvision rounds in it.
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
    # A gather, because grid_sample takes ten times as long on a CPU and only takes floats.
    index = (row * width + column).masked_fill_(outside, 0).flatten(1)[:, None]
    sampled = images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1))
    return sampled.unflatten(2, (height, width)).masked_fill_(outside[:, None], 0)


def _blend(images: Tensor, plain: Tensor, magnitude: Tensor) -> Tensor:
    """The images times 1 + magnitude, plus a plain version of them times -magnitude.

    addcmul rounds product and sum once, as torchvision's `add_` with an `alpha` does; rounding
    twice would put some pixels one level off.
    """
    magnitude = magnitude[:, None, None, None]
    scaled = images.to(torch.float32).mul_(1 + magnitude)
    return torch.addcmul(scaled, plain, -magnitude).clamp_(0, 255).to(torch.uint8)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """`adjust_brightness` by the factor 1 + magnitude."""
    factor = 1 + magnitude[:, None, None, None]
    return images.to(torch.float32).mul_(factor).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """`adjust_saturation` by the factor 1 + magnitude."""
    return _blend(images, luma(images).floor_(), magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """`adjust_contrast` by the factor 1 + magnitude."""
    return _blend(images, luma(images).floor_().mean((1, 2, 3), keepdim=True), magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """`adjust_sharpness` by the factor 1 + magnitude: away from a 3 x 3 blur, but at the border.

    The blur gives the centre 5/13 and each neighbour 1/13. Its sums are of whole numbers and exact,
    and so its rounding depends on no order of summation.
    """
    sharp = images.to(torch.float32)
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    inner = sharp[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    difference = total.div_(13).round_().sub_(inner)
    inner.addcmul_(difference, -magnitude[:, None, None, None])
    return sharp.clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` of each channel's eight."""
    dropped = 2 ** (8 - bits) - 1
    return images & (255 - dropped).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at `threshold` or above."""
    return torch.where(images >= threshold[:, None, None, None], 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image to the full range, unless it has one value alone."""
    pixels = images.to(torch.float32)
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    unit = (high - low).mul_(1 / 255)
    # Not torchvision's own, which asks by boolean indexing whether there are such channels.
    low, unit = torch.where(high == low, 0.0, low), torch.where(high == low, 1.0, unit)
    return pixels.sub_(low).div_(unit).clamp_(0, 255).to(torch.uint8)
