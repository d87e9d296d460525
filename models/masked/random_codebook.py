"""A fixed codebook of patches: what a masked model says of a patch that it does not see.

Papers take the classes from a network trained before, a detector (ViLBERT) or a discrete VAE (FLAVA). This one is
drawn, not trained: patches under a random projection, each with the random codeword that lies nearest in direction.
Most of what varies in a patch is its colour and then its edges, and a projection keeps what varies most.
Source: Chiu et al. 2022 (BEST-RQ), section 3.1.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """pixel_values: (N, 3, H, W); returns (N, P, 3·p²), patches row by row, each channel by channel."""
    return F.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)


class Codebook(nn.Module):
    """Patches to classes.

    The model that holds one calls `draw` in its `_init_weights`, so that weights that come without one load too.

    Args:
        patch_size: p, in pixels.
        classes: K, how many codewords.
        width: of the space in which patch and codeword are compared.
        temperature: of the soft distribution; the lower, the nearer to one class.
    """

    projection: torch.Tensor
    codewords: torch.Tensor

    def __init__(self, patch_size: int, classes: int, width: int = 8, temperature: float = 0.05):
        super().__init__()
        self.patch_size, self.temperature = patch_size, temperature
        self.register_buffer("projection", torch.empty(3 * patch_size**2, width))
        self.register_buffer("codewords", torch.empty(classes, width))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """The same numbers in every model of these sizes: Xavier for the projection, normal for the codewords."""
        generator = torch.Generator().manual_seed(0)
        for buffer, scale in ((self.projection, sum(self.projection.shape) ** -0.5), (self.codewords, 1.0)):
            drawn = torch.randn(buffer.shape, generator=generator, device="cpu") * scale
            init.copy_(buffer, drawn.to(buffer.dtype))

    @torch.no_grad()
    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """The distribution over classes, softmax_k(cos(c_k, A x) / τ); patches: (..., 3·p²); returns (..., K)."""
        near = F.normalize(patches @ self.projection, dim=-1) @ F.normalize(self.codewords, dim=-1).T
        return (near / self.temperature).softmax(-1)

    def classes(self, patches: torch.Tensor) -> torch.Tensor:
        """The nearest codeword's number, argmin_k ‖norm(c_k) − norm(A x)‖; patches: (..., 3·p²); returns (...)."""
        return self(patches).argmax(-1)
