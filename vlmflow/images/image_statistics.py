"""Thumbnails of images, and the statistics that curation rules use. Each image is decoded once."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vlmflow.images.decoding import load_upright, open_image, to_rgb

SIDE = 64  # of the thumbnail, px
COARSE = 4  # cells per side of the coarse signature, a fast prefilter
CELLS = 16  # cells per side of the signature: 4 x 4 thumbnail pixels each
EDGE = 256  # px; the longer side at which sharpness is measured, so that one threshold fits files of all sizes
FLAT = 2.0  # grey levels; a smaller step between neighbours is compression noise, not an edge


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A decoded image at small size; if `reason` is set, it could not be decoded and the rest is empty."""

    reason: str = ""
    width: int = 0  # px, of the full upright image
    height: int = 0
    thumbnail: np.ndarray | None = None  # (64, 64, 3) uint8 Y, Cb, Cr; resized to a square
    sharpness: float = 0.0  # variance of the Laplacian of brightness; 0 if not measured


@dataclass(frozen=True, kw_only=True)
class ImageStatistics:
    """The statistics of N thumbnails."""

    contrast: np.ndarray  # (N,) standard deviation of brightness, in grey levels
    correlation: np.ndarray  # (N,) of neighbouring pixels, larger of the two directions: about 0 for white noise
    entropy: np.ndarray  # (N,) bits of the histogram of brightness, 0 to 8
    colorfulness: np.ndarray  # (N,) colourfulness: 0 for grey, 15 faint, 45 moderate, above 80 strong
    sharpness: np.ndarray  # (N,) variance of the Laplacian
    hashes: np.ndarray  # (N,) uint64 dHash
    cells: np.ndarray  # (N, 768) uint8 mean Y, Cb, Cr of each cell of 16 × 16
    coarse: np.ndarray  # (N, 48) uint8 those of 4 × 4, colour halved, rounded down
    signatures: np.ndarray  # (N,) 16 bytes: digest of hash and cells


def read_thumbnail(data: bytes | None, *, sharpness: bool = False) -> Thumbnail:
    """Decode one image; a file that cannot be decoded gives a reason, not an exception.

    Args:
        sharpness: also measure sharpness; a JPEG is then decoded at twice the scale.
    """
    try:
        with open_image(data) as image:
            width, height = image.size
            image.draft(None, (EDGE, EDGE) if sharpness else (2 * SIDE, 2 * SIDE))
            turned = load_upright(image)
            if turned is not image and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                width, height = height, width  # a quarter turn
            turned = to_rgb(turned)
        # Bilinear, not box: Pillow's box counts whole pixels only, and copies of other sizes come out different.
        small = turned.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("YCbCr")
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its message has a memory address, which differs between runs
        return Thumbnail(reason="UnidentifiedImageError: not an image of a supported format")
    except Exception as error:  # Pillow's plugins can raise almost any type on a damaged file
        return Thumbnail(reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
    sharp = laplacian(turned) if sharpness else 0.0
    return Thumbnail(width=width, height=height, thumbnail=np.asarray(small), sharpness=sharp)


def compute_statistics(images: list[Thumbnail]) -> ImageStatistics:
    """Compute the statistics of all thumbnails at once; an undecodable image counts as black."""
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    seen = [black if image.thumbnail is None else image.thumbnail for image in images]
    thumbnails = np.array(seen, dtype=np.uint8).reshape(len(seen), SIDE, SIDE, 3)
    planes = thumbnails.transpose(0, 3, 1, 2).astype(np.float32)  # (N, 3, 64, 64)
    luma = planes[:, 0]
    contrast = luma.std(axis=(1, 2))
    cells = _averaging(CELLS) @ planes @ _averaging(CELLS).T  # products are ten times faster than means over short axes
    return ImageStatistics(
        contrast=contrast,
        correlation=_correlation(luma, contrast),
        entropy=_entropy(thumbnails[..., 0]),
        colorfulness=_colour(planes),
        sharpness=np.array([image.sharpness for image in images], dtype=np.float32),
        **duplicate_features(_dhash(luma), np.rint(cells).astype(np.uint8)),
    )


def duplicate_features(hashes: np.ndarray, cells: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features for the near-duplicate search, from (N,) hashes and (N, 3, 16, 16) cells."""
    step = CELLS // COARSE
    coarse = cells.reshape(len(cells), 3, COARSE, step, COARSE, step).mean((3, 5), dtype=np.float32)
    coarse[:, 1:] /= 2
    flat = cells.reshape(len(cells), 3 * CELLS**2)
    digests = [
        hashlib.blake2b(value.tobytes() + row.tobytes(), digest_size=16).digest()
        for value, row in zip(hashes, flat, strict=True)
    ]
    return {
        "hashes": hashes,
        "cells": flat,
        "coarse": coarse.reshape(len(cells), 3 * COARSE**2).astype(np.uint8),
        "signatures": np.frombuffer(b"".join(digests), "V16"),
    }


def laplacian(image: Image.Image) -> float:
    """Return the variance of the Laplacian of brightness, in grey levels squared: small for a blurred image.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy", LAPV.
    """
    grey = image.convert("L")
    grey.thumbnail((EDGE, EDGE), Image.Resampling.BILINEAR)
    if min(grey.size) < 3:
        return 0.0
    pixels = np.asarray(grey, dtype=np.float32)
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float((around - 4 * pixels[1:-1, 1:-1]).var())


@contextmanager
def ignore_pillow_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow about metadata and large images; the rules check the pixels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _correlation(luma: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Pearson correlation of each pixel with its right, and with its lower, neighbour; the larger magnitude."""
    centred = luma - luma.mean(axis=(1, 2), keepdims=True)
    across = np.abs((centred[:, :, 1:] * centred[:, :, :-1]).mean(axis=(1, 2)))
    down = np.abs((centred[:, 1:] * centred[:, :-1]).mean(axis=(1, 2)))
    variance = contrast**2
    return np.divide(np.maximum(across, down), variance, out=np.ones_like(variance), where=contrast > 1e-3)


def _entropy(luma: np.ndarray) -> np.ndarray:
    """Shannon entropy, (N,) bits, of the histogram of brightness of (N, 64, 64) uint8."""
    count = len(luma)
    places = luma.reshape(count, SIDE**2).astype(np.int64) + 256 * np.arange(count)[:, None]
    share = np.bincount(places.ravel(), minlength=256 * count).reshape(count, 256) / SIDE**2
    return 0 - (share * np.log2(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)


def _colour(planes: np.ndarray) -> np.ndarray:
    """Colourfulness, (N,), of (N, 3, 64, 64) Y, Cb, Cr.

    Source: Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images", eq. for M̂(3). Its opponent
    colours R − G and (R + G)/2 − B hold no brightness, so they are sums of Cb and Cr alone.
    """
    blue, red = planes[:, 1] - 128, planes[:, 2] - 128
    axes = np.stack([0.344136 * blue + 2.116136 * red, 0.343932 * red - 1.944068 * blue])  # (2, N, 64, 64)
    spread, mean = axes.var(axis=(2, 3)).sum(axis=0), (axes.mean(axis=(2, 3)) ** 2).sum(axis=0)
    return np.sqrt(spread) + 0.3 * np.sqrt(mean)


def _dhash(luma: np.ndarray) -> np.ndarray:
    """64-bit dHash: is each cell of a 9 x 8 grid brighter than its left neighbour, by more than noise?

    Source: Krawetz 2013, "Kind of Like That"; the margin keeps flat areas from flipping bits in a recompressed copy.
    """
    grid = _averaging(8) @ luma @ _averaging(9).T  # (N, 8, 9)
    bits = grid[:, :, 1:] - grid[:, :, :-1] > FLAT
    return np.packbits(bits.reshape(len(luma), 64), axis=1).view(">u8")[:, 0].astype(np.uint64)


def _averaging(parts: int) -> np.ndarray:
    """(parts, 64) weights that average a line of the thumbnail over `parts` equal stretches, pixels cut exactly."""
    edges = np.linspace(0, SIDE, parts + 1)[:, None]
    covered = np.clip(edges - np.arange(SIDE), 0, 1)  # how much of each pixel lies before each edge
    return ((covered[1:] - covered[:-1]) * parts / SIDE).astype(np.float32)
