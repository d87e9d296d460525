import math

import torch
from torch import nn
from torch.nn import functional as F

from models.masked.random_codebook import RandomCodebook, patchify


def test_patches_go_row_by_row_and_channel_by_channel():
    pictures = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    patches = patchify(pictures, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            cut = pictures[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, 3 * row + column], cut.flatten())


def test_the_class_is_the_nearest_codeword_in_direction():
    torch.manual_seed(0)
    book = RandomCodebook(patch_size=2, codebook_size=7, width=4)
    patches = torch.randn(5, 12)
    for patch, found in zip(patches, book.nearest_codewords(patches), strict=True):
        seen = F.normalize(patch @ book.projection, dim=0)
        far = [float((F.normalize(word, dim=0) - seen).norm()) for word in book.codewords]
        assert int(found) == far.index(min(far))


def test_the_distribution_is_a_softmax_of_cosines():
    torch.manual_seed(0)
    book = RandomCodebook(patch_size=2, codebook_size=3, width=4, temperature=0.5)
    patch = torch.randn(12)
    seen = (patch @ book.projection).tolist()
    scores = []
    for word in book.codewords.tolist():
        cosine = sum(a * b for a, b in zip(word, seen, strict=True)) / math.hypot(*word) / math.hypot(*seen)
        scores.append(math.exp(cosine / 0.5))
    torch.testing.assert_close(book(patch), torch.tensor(scores) / sum(scores))
    torch.testing.assert_close(book(3 * patch), book(patch))  # contrast does not matter, colour does


def test_two_books_of_one_size_are_the_same_and_none_learns():
    torch.manual_seed(0)
    first = RandomCodebook(4, 16)
    torch.manual_seed(1)
    second = RandomCodebook(4, 16)
    assert torch.equal(first.codewords, second.codewords)
    assert torch.equal(first.projection, second.projection)
    assert not list(first.parameters())
    assert not first(torch.randn(2, 48, requires_grad=True)).requires_grad


def test_a_book_moved_off_meta_is_drawn_again():
    with torch.device("meta"):
        book: nn.Module = RandomCodebook(4, 16)
    book = book.to_empty(device="cpu")
    assert isinstance(book, RandomCodebook)
    book.init_codewords()
    assert torch.equal(book.codewords, RandomCodebook(4, 16).codewords)


def test_what_a_patch_is_called_tells_its_colour():
    book = RandomCodebook(8, 64)
    colours = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, 1, 1], [-1, -1, -1]]).float()
    noise = torch.randn(6, 20, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    found = book.nearest_codewords((colours[:, None, :, None, None] + noise).flatten(2))  # (6, 20)
    usual = found.mode(dim=1).values
    assert (found == usual[:, None]).float().mean() > 0.9
    assert len(usual.unique()) == 6
