import math

import torch
from torch import nn
from torch.nn import functional as F

from models.masked.random_codebook import RandomCodebook, patchify


def test_patches_are_ordered_row_by_row_and_their_values_channel_by_channel():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            expected = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, 3 * row + column], expected.flatten())


def test_the_class_is_the_nearest_codeword_in_direction():
    torch.manual_seed(0)
    codebook = RandomCodebook(patch_size=2, codebook_size=7, width=4)
    patches = torch.randn(5, 12)
    for patch, found in zip(patches, codebook.nearest_codewords(patches), strict=True):
        projected = F.normalize(patch @ codebook.projection, dim=0)
        distances = [float((F.normalize(word, dim=0) - projected).norm()) for word in codebook.codewords]
        assert int(found) == distances.index(min(distances))


def test_the_distribution_is_a_softmax_of_cosines():
    torch.manual_seed(0)
    codebook = RandomCodebook(patch_size=2, codebook_size=3, width=4, temperature=0.5)
    patch = torch.randn(12)
    projected = (patch @ codebook.projection).tolist()
    scores = []
    for word in codebook.codewords.tolist():
        cosine = sum(a * b for a, b in zip(word, projected, strict=True)) / math.hypot(*word) / math.hypot(*projected)
        scores.append(math.exp(cosine / 0.5))
    torch.testing.assert_close(codebook(patch), torch.tensor(scores) / sum(scores))
    torch.testing.assert_close(codebook(3 * patch), codebook(patch))  # scaling a patch does not change its class


def test_codebooks_of_equal_size_are_equal_and_not_trained():
    torch.manual_seed(0)
    first = RandomCodebook(4, 16)
    torch.manual_seed(1)
    second = RandomCodebook(4, 16)
    assert torch.equal(first.codewords, second.codewords)
    assert torch.equal(first.projection, second.projection)
    assert not list(first.parameters())
    assert not first(torch.randn(2, 48, requires_grad=True)).requires_grad


def test_a_codebook_moved_off_the_meta_device_is_drawn_again():
    with torch.device("meta"):
        codebook: nn.Module = RandomCodebook(4, 16)
    codebook = codebook.to_empty(device="cpu")
    assert isinstance(codebook, RandomCodebook)
    codebook.init_codewords()
    assert torch.equal(codebook.codewords, RandomCodebook(4, 16).codewords)


def test_patches_of_one_colour_get_one_class():
    codebook = RandomCodebook(8, 64)
    colours = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, 1, 1], [-1, -1, -1]]).float()
    noise = torch.randn(6, 20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    found = codebook.nearest_codewords((colours[:, None, :, None, None] + noise).flatten(2))  # (6, 20)
    usual = found.mode(dim=1).values
    assert (found == usual[:, None]).float().mean() > 0.9
    assert len(usual.unique()) == 6
