from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.data import FashionMnist, Mnist, read_idx

RNG = np.random.default_rng(0)
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
IMAGES = {"train": RNG.integers(0, 256, (12, 28, 28)), "t10k": RNG.integers(0, 256, (5, 28, 28))}
LABELS = {"train": np.arange(12) % 10, "t10k": np.array([9, 0, 9, 3, 3])}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Fashion-MNIST: the train files plain, the t10k files gzipped."""
    for part, suffix, pack in (("train", "", bytes), ("t10k", ".gz", gzip.compress)):
        (tmp_path / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(IMAGES[part])))
        (tmp_path / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS[part])))
    return tmp_path


def test_both_parts_come_back_in_order(folder):
    source = FashionMnist(folder)
    assert (source.name, source.spec.shape, source.spec.modality) == ("fashion-mnist", (1, 28, 28), "image")
    for part, split in (("train", source.train), ("t10k", source.held_out)):
        batch = split.fetch(np.arange(len(split)))
        assert torch.equal(source.transform.inverse(batch.x1)[:, 0], torch.from_numpy(IMAGES[part]).float())
        assert batch.cond["label"].tolist() == LABELS[part].tolist()
        assert (batch.x1.dtype, batch.x1.min(), batch.x1.max()) == (torch.float32, -1, 1)


def test_the_classes_have_their_names_and_training_shares(folder):
    label = FashionMnist(str(folder)).spec.conditions["label"]
    assert (len(label.names), label.names[0], label.names[9]) == (10, "T-shirt/top", "Ankle boot")
    assert label.frequencies == pytest.approx([2 / 12, 2 / 12] + [1 / 12] * 8)


def test_gzipped_or_not_is_the_same_data_whatever_the_name_says(folder):
    plain = FashionMnist(folder).fingerprint
    content = (folder / TRAIN_IMAGES).read_bytes()
    (folder / TRAIN_IMAGES).write_bytes(gzip.compress(content))
    assert FashionMnist(folder).fingerprint == plain
    (folder / TRAIN_IMAGES).rename(folder / f"{TRAIN_IMAGES}.gz")
    assert FashionMnist(folder).fingerprint == plain
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content)
    assert FashionMnist(folder).fingerprint == plain
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert FashionMnist(folder).fingerprint != plain


def test_axes_are_big_endian(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 1, 2, 0, 0, 0, 1]) + bytes(258))
    assert read_idx(path, ndim=2).shape == (258, 1)


PACKED = gzip.compress(idx(IMAGES["train"]), mtime=0)  # the time would make test ids differ between processes


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (TRAIN_IMAGES, idx(IMAGES["train"])[:-1], "is truncated: 9407 of the 9408 bytes of its shape (12, 28, 28)"),
        (TRAIN_IMAGES, idx(IMAGES["train"])[:16], "is truncated: 0 of the 9408 bytes"),
        (TRAIN_IMAGES, idx(IMAGES["train"])[:10], "is truncated: it has 10 bytes, its header alone 16"),
        (TRAIN_IMAGES, idx(IMAGES["train"]) + b"xy", "has 2 bytes after the 9408 of its shape"),
        (TRAIN_IMAGES, b"", "starts with the bytes (none), not with 00 00 08 03"),
        (TRAIN_IMAGES, idx(LABELS["train"]), "starts with the bytes 00 00 08 01, not with 00 00 08 03"),
        (TRAIN_IMAGES, b"\0\0\x0d\x03" + bytes(12), "starts with the bytes 00 00 0d 03"),
        (TRAIN_IMAGES, b"<!DOCTYPE html>", "not an IDX file of 3-dimensional unsigned bytes; check that it is"),
        (TRAIN_IMAGES, b"\0\0\x08\x03" + b"\xff" * 12, "is truncated: 0 of the"),
        (TRAIN_IMAGES, idx(np.zeros((12, 28, 27))), "has shape (12, 28, 27), not (N, 28, 28)"),
        (TRAIN_IMAGES, idx(np.zeros((0, 28, 28))), "has shape (0, 28, 28)"),
        (TRAIN_IMAGES, PACKED[:-9], "is a damaged gzip file"),
        (TRAIN_IMAGES, PACKED[:5], "is a damaged gzip file"),
        (TRAIN_IMAGES, PACKED[:500] + bytes([PACKED[500] ^ 255]) + PACKED[501:], "is a damaged gzip file"),
        (TRAIN_IMAGES, PACKED + b"tail", "is a damaged gzip file"),
        (TRAIN_LABELS, idx(LABELS["train"][:11]), "has 12 images but"),
        (TRAIN_LABELS, idx(LABELS["train"] + 1), "has the label 10, not 0 to 9"),
        (TRAIN_LABELS, idx(IMAGES["train"]), "starts with the bytes 00 00 08 03, not with 00 00 08 01"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_found(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        FashionMnist(folder)
    message = str(error.value)
    assert words in message
    assert str(folder / name) in message
    assert message.count("; ") >= 1  # the fix comes after it
    assert "\n" not in message


def test_a_missing_file_lists_what_was_looked_for(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError) as error:
        FashionMnist(folder)
    assert f"{folder} has neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz" in str(error.value)


def test_a_folder_that_is_none(folder):
    for data_dir, words in (
        (folder / "nowhere", "does not exist; name the folder that holds train-images-idx3-ubyte.gz"),
        (folder / TRAIN_IMAGES, "is a file, not a folder"),
        ("", "data_dir is not given"),
        (None, "data_dir is not given"),
    ):
        with pytest.raises(UserError) as error:
            FashionMnist(data_dir)
        assert words in str(error.value)


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"nothing cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "nothing", ndim=1)


# --- the other sets in these files ---


def four(folder: Path, prefix: str = "", held_out: str = "t10k") -> Path:
    for part, name in (("train", "train"), ("t10k", held_out)):
        (folder / f"{prefix}{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[part][:, :20])))
        (folder / f"{prefix}{name}-labels-idx1-ubyte").write_bytes(idx(LABELS[part]))
    return folder


def test_mnist_has_any_size_and_its_own_names(tmp_path):
    source = Mnist(four(tmp_path))
    assert (source.name, source.spec.shape) == ("mnist", (1, 20, 28))
    assert source.spec.conditions["label"].names == tuple("0123456789")
    assert Mnist(tmp_path, labels=False).spec.conditions == {}
    assert Mnist(tmp_path, names="abcdefghij").spec.conditions["label"].names[9] == "j"
    with pytest.raises(UserError, match="has the label 9 but names only 2 classes"):
        Mnist(tmp_path, names=["a", "b"])


def test_emnist_is_turned_upright(tmp_path):
    source = Mnist(four(tmp_path, "emnist-digits-", "test"))
    assert (source.name, source.spec.shape, len(source.held_out)) == ("emnist-digits", (1, 28, 20), 5)
    first = source.transform.inverse(source.train.fetch(np.array([0])).x1)[0, 0]
    assert torch.equal(first, torch.from_numpy(IMAGES["train"][0, :20].T.copy()).float())


def test_one_set_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"has neither train-images-idx3-ubyte nor .*; put the four files of one set"):
        Mnist(tmp_path)
    four(four(tmp_path, "emnist-digits-", "test"), "emnist-letters-", "test")
    with pytest.raises(UserError, match="has the sets emnist-digits-, emnist-letters-; put"):
        Mnist(tmp_path)
