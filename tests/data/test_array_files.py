from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.data import ArrayFile

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)


def saved(path: Path, x: np.ndarray) -> Path:
    np.save(path, x)
    return path


def units(source: ArrayFile) -> torch.Tensor:
    """Everything there is to train on, in data units."""
    return source.transform.inverse(source.train.fetch(np.arange(len(source.train))).x1)


def test_every_layout_is_the_same_images(tmp_path):
    expected = torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy()).float()
    for name, x in (("last", COLOUR), ("first", COLOUR.transpose(0, 3, 1, 2)), ("fortran", np.asfortranarray(COLOUR))):
        source = ArrayFile(saved(tmp_path / f"{name}.npy", x), held_out=0)
        assert source.name == name and source.spec.shape == (3, 5, 6)
        assert torch.equal(units(source), expected)
    grey = ArrayFile(saved(tmp_path / "grey.npy", COLOUR[..., 0]), held_out=0)
    assert grey.spec.shape == (1, 5, 6) and torch.equal(units(grey)[:, 0], expected[:, 0])


def test_which_axis_the_channels_are_is_asked_where_both_may_be(tmp_path):
    path = saved(tmp_path / "a.npy", RNG.integers(0, 256, (4, 3, 8, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"either axis may be the channels; say layout='channels_first'"):
        ArrayFile(path)
    assert ArrayFile(path, layout="channels_first").spec.shape == (3, 8, 3)
    assert ArrayFile(path, layout="channels_last").spec.shape == (3, 3, 8)


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (RNG.random((8, 4, 5), np.float32), 0, 1),
        (RNG.random((8, 4, 5)) * 2 - 1, -1, 1),
        (RNG.random((8, 4, 5)).astype(np.float16), 0, 1),
        (RNG.integers(0, 256, (8, 4, 5)), 0, 255),
        (RNG.random((8, 4, 5)).astype(">f8"), 0, 1),
        (RNG.integers(0, 200, (8, 4, 5)).astype(">u2"), 0, 255),
        (RNG.random((8, 4, 5)) < 0.5, 0, 1),
    ],
)
def test_ranges_that_are_usual_are_found(tmp_path, x, low, high):
    source = ArrayFile(saved(tmp_path / "a.npy", x), held_out=0)
    assert (source.transform.low, source.transform.high) == (low, high)
    torch.testing.assert_close(units(source)[:, 0].double(), torch.tensor(x.astype(float)), rtol=0, atol=1e-4)


def test_a_file_is_mapped_and_not_loaded(tmp_path):
    source = ArrayFile(saved(tmp_path / "a.npy", COLOUR), held_out=0)
    before = source.train.fetch(np.array([0])).x1
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r+")
    mapped[0] = 255 - mapped[0]
    mapped.flush()
    assert torch.allclose(source.train.fetch(np.array([0])).x1, -before, atol=1e-6)


def test_copies_share_a_side_and_labels_go_with_their_samples(tmp_path):
    x = RNG.integers(0, 256, (40, 3, 4), dtype=np.uint8)
    words = np.array(["b", "a", "c", "a"] * 10)
    np.savez(tmp_path / "a.npz", images=np.concatenate([x, x[::-1]]), labels=np.concatenate([words, words[::-1]]))
    source = ArrayFile(tmp_path / "a.npz", held_out=0.3)
    sides = []
    for split in (source.train, source.held_out):
        batch = split.fetch(np.arange(len(split)))
        pixels = source.transform.inverse(batch.x1)[:, 0].byte().numpy()
        sides.append({row.tobytes() for row in pixels})
        assert len(pixels) == 2 * len(sides[-1])
        for row, label in zip(pixels, batch.cond["label"].tolist(), strict=True):
            here = (x == row).all((1, 2)).argmax()
            assert "abc"[label] == words[here]
    assert not sides[0] & sides[1]
    assert source.spec.conditions["label"].names == ("a", "b", "c")
    assert not ArrayFile(tmp_path / "a.npz", labels="no").spec.conditions


def test_keras_keys_are_the_split(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(
        path, x_train=COLOUR[:9], y_train=np.arange(9)[:, None] % 3, x_test=COLOUR[9:], y_test=np.arange(3)[:, None]
    )
    source = ArrayFile(path)
    assert (len(source.train), len(source.held_out)) == (9, 3)
    assert torch.equal(units(source), torch.from_numpy(COLOUR[:9].transpose(0, 3, 1, 2).copy()).float())
    assert source.held_out.fetch(np.arange(3)).cond["label"].tolist() == [0, 1, 2]


def test_vectors_are_standardised_by_their_training_rows(tmp_path):
    x = RNG.normal(5, [1, 100], (300, 2))
    source = ArrayFile(saved(tmp_path / "a.npy", x))
    rows = source.train.fetch(np.arange(len(source.train))).x1
    assert source.spec.modality == "vector" and 10 <= len(source.held_out) <= 50
    torch.testing.assert_close(rows.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)


class Payload:
    def __reduce__(self):
        return open, ("ran", "w")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((3, 2, 5, 6)), "where no axis of 1, 3 or 4 can be the channels"),
        (np.zeros(3), "has shape (3,); give vectors (N, D) or images"),
        (np.zeros((0, 4, 4)), "has shape (0, 4, 4)"),
        (np.zeros((3, 4), complex), "holds complex128, not real numbers"),
        (
            np.full((3, 4, 4), 1.5),
            "pixels from 1.5 to 1.5, outside (0, 1) and (-1, 1); give their value_range",
        ),
        (np.full((3, 4, 4), 256), "int64 pixels from 256 to 256, outside (0, 255)"),
        (np.array([[[0.0, np.nan]]]), "has NaN or an infinite value in row 0"),
        (np.array([Payload(), Payload()]), "it holds Python objects, not numbers"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, monkeypatch, x, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        ArrayFile(saved(tmp_path / "a.npy", x))
    assert words in str(error.value) and str(tmp_path / "a.npy") in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_something_else(tmp_path):
    whole = saved(tmp_path / "whole.npy", COLOUR).read_bytes()
    for content in (b"hello", b"", whole[:-5], whole[:20], b"PK\3\4 and so on"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(
            UserError, match=r"a\.npy (cannot be read as NumPy's \.npy or \.npz \(|claims 1,080 bytes for its shape)"
        ):
            ArrayFile(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", p=COLOUR, q=COLOUR)
    with pytest.raises(UserError, match=r"b\.npz has p, q; call the samples x and their labels y"):
        ArrayFile(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=COLOUR, y=np.arange(5))
    with pytest.raises(UserError, match=r"has labels \(5,\) int64, not a whole number or a word for each of 12"):
        ArrayFile(tmp_path / "c.npz")
    with pytest.raises(UserError, match=r"holds vectors .* which have no value_range"):
        ArrayFile(saved(tmp_path / "d.npy", np.eye(3)), value_range=(0, 1))
    with pytest.raises(UserError, match="has no labels; save them as y"):
        ArrayFile(saved(tmp_path / "d.npy", np.eye(3)), labels="yes")
