from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.data import Cifar
from advect.data.images.cifar import read_plain_pickle

RNG = np.random.default_rng(0)
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
X = RNG.integers(0, 256, (33, 3072), dtype=np.uint8)
Y = np.arange(33) % 10
FINE, COARSE = [f"fine{i}" for i in range(100)], [f"coarse{i}" for i in range(20)]
PARTS = {**{f"data_batch_{i + 1}": slice(6 * i, 6 * i + 6) for i in range(5)}, "test_batch": slice(30, 33)}


def text(value: str) -> bytes:
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(value)]) + value.encode()


def python_2_batch(x: np.ndarray, labels: list[int]) -> bytes:
    """A batch with the opcodes of upstream's own files: protocol 2, written by Python 2 and an old NumPy."""
    data = x.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", n) for n in x.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R(K\x01" + shape
        + b"\x86cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + text("labels") + numbers + b"u."


def binary_10(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, part in PARTS.items():
        (folder / f"{name}.bin").write_bytes(np.column_stack([Y[part].astype(np.uint8), X[part]]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return folder


def python_10(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, part in PARTS.items():
        (folder / name).write_bytes(python_2_batch(X[part], Y[part].tolist()))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": TEN, "num_vis": 3072}, protocol=2))
    return folder


def hundred(folder: Path, *, binary: bool) -> Path:
    folder.mkdir(parents=True)
    fine, coarse = Y * 9, Y * 2
    for name, part in (("train", slice(0, 30)), ("test", slice(30, 33))):
        if binary:
            table = np.column_stack([coarse[part].astype(np.uint8), fine[part].astype(np.uint8), X[part]])
            (folder / f"{name}.bin").write_bytes(table.tobytes())
        else:
            batch = {"data": X[part], "fine_labels": fine[part].tolist(), "coarse_labels": coarse[part].tolist()}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(FINE))
        (folder / "coarse_label_names.txt").write_text("\n".join(COARSE))
    else:
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE, "coarse_label_names": COARSE}))
    return folder


def everything(split):
    return split.fetch(np.arange(len(split)))


def test_both_layouts_of_cifar_10_are_the_same_images_labels_and_names(tmp_path):
    sources = [Cifar(binary_10(tmp_path / "b")), Cifar(python_10(tmp_path / "p"))]
    for source in sources:
        assert (source.name, len(source.train), len(source.held_out)) == ("cifar10", 30, 3)
        batch = everything(source.train)
        assert torch.equal(source.transform.inverse(batch.x1).flatten(1), torch.from_numpy(X[:30]).float())
        assert batch.cond["label"].tolist() == Y[:30].tolist()
        assert source.spec.conditions["label"].names == tuple(TEN)
        assert everything(source.held_out).cond["label"].tolist() == Y[30:].tolist()
    assert sources[0].fingerprint == sources[1].fingerprint


def test_both_layouts_of_cifar_100_are_the_same(tmp_path):
    folders = [hundred(tmp_path / name, binary=name == "b") for name in "bp"]
    sources = [Cifar(folder, superclasses=True) for folder in folders]
    assert sources[0].fingerprint == sources[1].fingerprint
    for source in sources:
        batch = everything(source.train)
        assert torch.equal(source.transform.inverse(batch.x1).flatten(1), torch.from_numpy(X[:30]).float())
        assert batch.cond["label"].tolist() == (Y[:30] * 9).tolist()
        assert batch.cond["superclass"].tolist() == (Y[:30] * 2).tolist()
        names = {key: condition.names for key, condition in source.spec.conditions.items()}
        assert names == {"label": tuple(FINE), "superclass": tuple(COARSE)}
    assert Cifar(folders[0], labels=False).spec.conditions == {}


def test_the_folder_around_upstreams_will_do(tmp_path):
    binary_10(tmp_path / "cifar-10-batches-bin")
    assert len(Cifar(tmp_path).train) == 30


class Payload:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        (os.system, ("touch {}/ran",), "posix.system"),
        (eval, ("open('{}/ran', 'w')",), "eval"),
        (getattr, (np, "loads"), "getattr"),
        (np.load, ("x",), "load"),
    ],
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, protocol, call, arguments, name):
    arguments = [word.format(tmp_path) if isinstance(word, str) else 0 for word in arguments]
    batch = {"data": X[:2], "labels": Payload(call, *arguments)}
    for file in python_10(tmp_path / "p").iterdir():
        file.write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(UserError) as error:
        Cifar(tmp_path / "p")
    assert "is not a pickle of plain arrays and was refused (it asks for" in str(error.value)
    assert name in str(error.value) and str(tmp_path / "p") in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_from_every_protocol(tmp_path, protocol):
    value = {"a": X[:2], "b": [1, -2.5, "ü", None, True], "c": b"\0\xff", "d": (np.arange(3.0),)}
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol=protocol))
    back = read_plain_pickle(tmp_path / "p")
    assert (back["a"] == X[:2]).all() and back["b"] == value["b"] and back["c"] == value["c"]
    assert (back["d"][0] == np.arange(3)).all()


def test_damaged_files_are_named(tmp_path):
    binary, python = binary_10(tmp_path / "b"), python_10(tmp_path / "p")
    cases = [
        (binary / "data_batch_3.bin", b"x" * 3074, "has 3074 bytes, not images of 3073 bytes each"),
        (binary / "data_batch_3.bin", b"\x0a" * 3073, "has labels from 10 to 10, not 0 to 9"),
        (python / "data_batch_2", b"hello", "cannot be read as a pickle"),
        (python / "data_batch_2", python_2_batch(X[:2], [1, 2])[:3000], "cannot be read as a pickle (pickle data was"),
        (python / "data_batch_2", b"", "cannot be read as a pickle (Ran out of input)"),
        (python / "data_batch_2", pickle.dumps([1]), "has no entry 'data', so it is no CIFAR file"),
        (python / "data_batch_2", pickle.dumps({"data": [1]}), "holds no (N, 3072) bytes of images"),
        (python / "data_batch_2", python_2_batch(X[:3], [1, 2]), "has 3 images but 2 labels"),
        (python / "batches.meta", pickle.dumps({"label_names": 3}), "holds no list of names"),
    ]
    for path, content, words in cases:
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            Cifar(path.parent)
        assert words in str(error.value) and str(path) in str(error.value)
        path.write_bytes(before)
    (binary / "data_batch_4.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_4\.bin is missing; download all files"):
        Cifar(binary)
    with pytest.raises(UserError, match="holds no CIFAR: neither"):
        Cifar(tmp_path)
    with pytest.raises(UserError, match="superclasses are CIFAR-100's"):
        Cifar(python, superclasses=True)


REAL = Path(os.environ.get("ADVECT_DATA", "data"), "cifar10")


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "test_batch.bin").is_file(), reason="the real CIFAR-10 is not here")
def test_the_real_cifar_10():
    source = Cifar(REAL)
    assert (len(source.train), len(source.held_out)) == (50_000, 10_000)
    assert source.spec.conditions["label"].frequencies == pytest.approx([0.1] * 10)
    pixels = source.transform.inverse(source.train.fetch(np.arange(0, 50_000, 10)).x1) / 255
    # The well-known means and deviations of the training set.
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.005)
