"""A first layer that whitens patches of images, and is not trained."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: images whose patches are taken together: 46 MB for 2x2 patches of 32x32 images
CHUNK = 500


def patch_covariance(images: Tensor, size: int) -> Tensor:
    """Covariance, float64 (D, D), of all size x size patches of images (N, C, H, W), D = C size^2.

    A patch is its channels one after the other, each row by row, as in a filter of a convolution.
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
    """Filters (D, D), one a row, whose responses to patches of this covariance are uncorrelated.

    They are its eigenvectors, that of the largest eigenvalue first, each divided by the square root
    of eigenvalue + eps: responses have variance eigenvalue / (eigenvalue + eps), just below 1 but
    for directions that hardly vary and would be mostly noise.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return (eigenvectors / (eigenvalues + eps).sqrt()).T.flip(0)


class PatchWhitening(nn.Conv2d):
    """Convolution with whitening filters and their negatives, which are frozen, and a bias.

    (N, C, H, W) -> (N, 2 C size^2, H - size + 1, W - size + 1). As Page ("How to train your
    ResNet", 2019) has it, the negatives and the bias as in Jordan (2024). Until `fit_patches` the
    filters are random; `fitted`, a bool that checkpoints hold, says whether that has been.
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
        """Take the filters from normalised images (N, C, H, W), computed on the CPU in 64 bits."""
        covariance = patch_covariance(images.cpu(), self.kernel_size[0])
        filters = whitening_filters(covariance, self.eps)
        self.weight.copy_(torch.cat([filters, -filters]).view(self.weight.shape))
        self.fitted.fill_(True)
