"""A fixed random codebook of patches: classification targets for masked patches.

The papers take the classes from a pretrained network, a detector (ViLBERT) or a discrete VAE (FLAVA). This codebook is
random: a patch is projected by a random matrix and gets the class of the random codeword that is nearest in direction.
Most of a patch's variance is colour, then edges, and a random projection preserves the directions of most variance.
Source: Chiu et al. 2022 (BEST-RQ), section 3.1.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """pixel_values: (N, 3, H, W); returns (N, P, 3·p²), patches row by row, each channel by channel."""
    return F.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)


class RandomCodebook(nn.Module):
    """Map patches to classes.

    The model that holds a codebook calls `init_codewords` in its `_init_weights`, because public weights have none.

    Args:
        patch_size: p, in pixels.
        codebook_size: K, the number of codewords.
        width: dimension of the space in which patches and codewords are compared.
        temperature: τ of the soft distribution.
    """

    projection: torch.Tensor
    codewords: torch.Tensor

    def __init__(self, patch_size: int, codebook_size: int, width: int = 8, temperature: float = 0.05):
        super().__init__()
        self.patch_size, self.temperature = patch_size, temperature
        self.register_buffer("projection", torch.empty(3 * patch_size**2, width))
        self.register_buffer("codewords", torch.empty(codebook_size, width))
        self.init_codewords()

    @torch.no_grad()
    def init_codewords(self) -> None:
        """Draw Xavier weights for the projection and normal codewords, the same for all models of these sizes."""
        generator = torch.Generator().manual_seed(0)
        for buffer, scale in ((self.projection, sum(self.projection.shape) ** -0.5), (self.codewords, 1.0)):
            values = torch.randn(buffer.shape, generator=generator, device="cpu") * scale
            init.copy_(buffer, values.to(buffer.dtype))

    @torch.no_grad()
    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """The distribution over classes, softmax_k(cos(c_k, A x) / τ); patches: (..., 3·p²); returns (..., K)."""
        cosines = F.normalize(patches @ self.projection, dim=-1) @ F.normalize(self.codewords, dim=-1).T
        return (cosines / self.temperature).softmax(-1)

    def nearest_codewords(self, patches: torch.Tensor) -> torch.Tensor:
        """The class of each patch, argmin_k ‖norm(c_k) − norm(A x)‖; patches: (..., 3·p²); returns (...)."""
        return self(patches).argmax(-1)
