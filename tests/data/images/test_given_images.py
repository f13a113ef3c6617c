"""Files of images of which some pixels are asked for, and what is written of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data.base import category
from advect.data.images.modality import Images
from advect.data.transforms import PixelScale

RNG = np.random.default_rng(0)
MASK = RNG.random((6, 5)) < 0.4


def modality(channels: int = 3, high: float = 255, integer: bool = True) -> Images:
    return Images(DataSpec((channels, 6, 5), "image", {}), PixelScale(0, high, integer=integer))


def png(path: Path, channels: int = 3) -> np.ndarray:
    pixels = RNG.integers(0, 256, (6, 5, channels)).repeat(3 // channels, 2).astype(np.uint8)
    alpha = np.where(MASK, 0, 255).astype(np.uint8)[..., None]
    Image.fromarray(np.concatenate([pixels, alpha], 2)).save(path)
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("high", [255, 1])
def test_transparent_pixels_are_asked_for_and_others_are_the_same_bytes(
    tmp_path: Path, channels: int, high: float
) -> None:
    pixels, images = png(tmp_path / "half.png", channels), modality(channels, high, high > 1)
    rows = images.read_given(tmp_path / "half.png")
    assert torch.equal(rows.values.isnan(), torch.from_numpy(MASK).expand(1, channels, 6, 5))
    assert images.given_rows(rows).nanmean() == pytest.approx(pixels[~MASK].mean() * high / 255)
    x = torch.full((2, channels, 6, 5), 0.0)
    x[1] = high
    files = images.write_given(x, {}, rows, 2, tmp_path)
    assert [f.name for f in files] == ["draw-1.png", "draw-2.png", "samples.png"]
    for file, value in zip(files[:2], (0, 255), strict=True):
        found = np.asarray(Image.open(file)).reshape(6, 5, channels)
        assert (found[MASK] == value).all() and np.array_equal(found[~MASK], pixels[~MASK][:, :channels])


@pytest.mark.parametrize("layout", ["CHW", "nCHW", "nHWC"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_come_back_in_their_layout_and_type(tmp_path: Path, layout: str, suffix: str) -> None:
    x = RNG.random((2, 3, 6, 5)).astype(np.float32)
    x[:, :, MASK] = np.nan
    own = {"CHW": x[0], "nCHW": x, "nHWC": np.moveaxis(x, 1, -1)}[layout]
    file = tmp_path / f"half{suffix}"
    np.save(file, own) if suffix == ".npy" else np.savez(file, x=own, label=np.arange(2))
    images = modality(high=1, integer=False)
    rows = images.read_given(file)
    assert rows.values.shape == (1 if layout == "CHW" else 2, 3, 6, 5)
    drawn = images.transform.inverse(torch.zeros(len(rows.values), 3, 6, 5))
    new = images.write_given(drawn, {}, rows, 1, tmp_path)[0]
    found = np.load(new) if suffix == ".npy" else np.load(new)["x"]
    assert new.name == f"draw-1{suffix}" and found.dtype == np.float32
    assert np.array_equal(found, np.where(np.isnan(own), np.float32(0.5), own))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    image = np.full((6, 5, 4), 255, np.uint8)
    image[0, 0, 3] = 100
    for name, value, channels, words in (
        ("half.png", image, 3, "half-transparent pixels"),
        ("whole.png", image[..., :3], 3, "asks for nothing"),
        ("size.png", image[:5], 3, r"is of 5 x 5 pixels \(mode RGBA\), and the flow's images of 5 x 6"),
        ("grey.png", np.arange(90, dtype=np.uint8).reshape(6, 5, 3), 1, "is in colour, and the flow makes grey"),
        ("shape.npy", np.zeros((4, 4)), 3, r"must hold real numbers \(3, 6, 5\)"),
        ("whole.npy", np.zeros((3, 6, 5), np.uint8), 3, "must hold real numbers .* got uint8"),
        ("range.npy", np.full((3, 6, 5), 300.0), 3, "has pixels outside 0 to 255"),
        ("part.npy", np.where(np.arange(90).reshape(3, 6, 5) == 7, np.nan, 1), 3, "knows entry 7 of row 0 in part"),
        ("text.txt", None, 3, "is no .png, .npy or .npz file"),
        ("none.png", None, 3, "is not a readable PNG file"),
    ):
        file = tmp_path / name
        if value is not None:
            np.save(file, value) if file.suffix == ".npy" else Image.fromarray(value).save(file)
        with pytest.raises(UserError, match=words):
            modality(channels).read_given(file)


def test_pixels_of_sixteen_bits_are_refused_rather_than_cut_to_eight(tmp_path: Path) -> None:
    lines = b"".join(b"\0" + struct.pack(">4H", 1000, 2000, 3000, 65535) * 5 for _ in range(6))
    header = struct.pack(">IIBBBBB", 5, 6, 16, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunk = lambda k, d: struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*own) for own in chunks))
    with pytest.raises(UserError, match=r"mode RGBA;16B\), .* of 8 bits a channel"):
        modality().read_given(tmp_path / "deep.png")


def test_labels_of_an_archive_are_taken_by_their_usual_names_one_for_each_image(tmp_path: Path) -> None:
    x = np.where(MASK, np.nan, np.zeros((2, 3, 6, 5)))
    spec = DataSpec((3, 6, 5), "image", {"label": category(np.array([0, 1]), ["a", "b"])})
    images = Images(spec, PixelScale(0, 1))
    np.savez(tmp_path / "half.npz", images=x, y=np.array(["b", "a"]))
    assert images.read_given(tmp_path / "half.npz").conditions == {"label": ["b", "a"]}
    np.savez(tmp_path / "half.npz", images=x, y=np.array(["b"]))
    with pytest.raises(UserError, match=r"array 'y' of shape \(1,\) for 2 samples"):
        images.read_given(tmp_path / "half.npz")


def test_a_cut_array_is_told_once(tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", np.full((3, 6, 5), np.nan))
    (tmp_path / "half.npy").write_bytes((tmp_path / "half.npy").read_bytes()[:-8])
    with pytest.raises(UserError, match=r"half.npy claims 720 bytes .* and the file has 712 for it; save it again$"):
        modality().read_given(tmp_path / "half.npy")
