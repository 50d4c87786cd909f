"""A frozen first layer that whitens patches of images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: images per step: 46 MB for 2x2 patches of 32x32 images
CHUNK = 500


def patch_covariance(images: Tensor, size: int) -> Tensor:
    """Return the covariance float64 (D, D) of all size x size patches of images.

    Images are (N, C, H, W), and D is C * size^2. A patch is a vector of its channels, each row by
    row, like a filter of a convolution.
    """
    dimensions = images.shape[1] * size**2
    total = torch.zeros(dimensions, dtype=torch.float64)
    products = torch.zeros(dimensions, dimensions, dtype=torch.float64)
    count = 0
    for chunk in images.split(CHUNK):
        patches = F.unfold(chunk.double(), size).transpose(0, 1).flatten(1)
        total += patches.sum(1)
        products += patches @ patches.T
        count += patches.shape[1]
    mean = total / count
    return products / count - mean.outer(mean)


def whitening_filters(covariance: Tensor, eps: float) -> Tensor:
    """Return filters, the rows of (D, D), with uncorrelated responses to patches.

    They are the eigenvectors of the patches' covariance, the largest eigenvalue first, divided by
    sqrt(eigenvalue + eps). The variance of a response is eigenvalue / (eigenvalue + eps): almost 1,
    and less in directions that are mostly noise.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return (eigenvectors / (eigenvalues + eps).sqrt()).T.flip(0)


class PatchWhitening(nn.Conv2d):
    """Convolution with frozen whitening filters, their negatives, and a bias.

    Shapes are (N, C, H, W) -> (N, 2 C size^2, H - size + 1, W - size + 1). The filters are from
    Page ("How to train your ResNet", 2019), negatives and bias from Jordan (2024). The filters are
    random before `fit_patches`, which sets `fitted`, a bool in checkpoints.
    """

    bias: nn.Parameter
    fitted: Tensor

    def __init__(self, in_channels: int, size: int, eps: float = 5e-4) -> None:
        if eps < 0:
            raise ValueError(f"eps must be 0 or more, got {eps}")
        super().__init__(in_channels, 2 * in_channels * size**2, size)
        self.eps = eps
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit_patches(self, images: Tensor) -> None:
        """Compute the filters of normalised images (N, C, H, W) on the CPU in 64 bits."""
        covariance = patch_covariance(images.cpu(), self.kernel_size[0])
        filters = whitening_filters(covariance, self.eps)
        self.weight.copy_(torch.cat([filters, -filters]).view(self.weight.shape))
        self.fitted.fill_(True)
