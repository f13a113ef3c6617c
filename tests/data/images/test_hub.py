from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.data import HubImages, ImageFolder

datasets = pytest.importorskip("datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 9, 3), dtype=np.uint8)
FEATURES = {
    "id": datasets.Value("int64"),
    "picture": datasets.Image(),
    "kind": datasets.ClassLabel(names=["cat", "dog"]),
    "Smiling": datasets.Value("bool"),
    "word": datasets.Value("string"),
}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def table(first: int = 0, last: int = 12):
    rows = range(first, last)
    columns = {
        "id": list(rows),
        "picture": [Image.fromarray(PIXELS[i]) for i in rows],
        "kind": [i % 2 for i in rows],
        "Smiling": [i % 3 == 0 for i in rows],
        "word": ["uv"[i % 2] for i in rows],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(FEATURES))


def saved(path: Path) -> Path:
    datasets.DatasetDict({"train": table(0, 8), "test": table(8, 12)}).save_to_disk(str(path))
    return path


def parquet(path: Path) -> Path:
    path.mkdir()
    table(0, 8).to_parquet(path / "train-00000-of-00001.parquet")
    table(8, 12).to_parquet(path / "test-00000-of-00001.parquet")
    return path


@pytest.mark.parametrize("make", [saved, parquet])
def test_a_dataset_on_disk_has_its_own_split_and_classes(tmp_path, make):
    source = HubImages(make(tmp_path / "set"), image_size=9)
    assert (source.name, len(source.train), len(source.held_out)) == ("set", 8, 4)
    assert source.spec.conditions["label"].names == ("cat", "dog")
    for split, first in ((source.train, 0), (source.held_out, 8)):
        batch = split.fetch(np.arange(len(split)))
        expected = PIXELS[first : first + len(split)].transpose(0, 3, 1, 2).copy()
        assert torch.equal(source.transform.inverse(batch.x1), torch.from_numpy(expected).float())
        assert batch.cond["label"].tolist() == [(first + i) % 2 for i in range(len(split))]


def test_one_file_is_split_by_content(tmp_path):
    parquet(tmp_path / "set")
    source = HubImages(tmp_path / "set" / "train-00000-of-00001.parquet", held_out=0.4)
    assert len(source.train) + len(source.held_out) == 8 and 1 <= len(source.held_out) < 8
    again = HubImages(tmp_path / "set" / "train-00000-of-00001.parquet", held_out=0.4)
    assert again.fingerprint == source.fingerprint and again.held_out.names == source.held_out.names


def test_the_same_files_split_alike_in_a_folder_and_in_a_dataset(tmp_path):
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    paths = [str(tmp_path / f"{i:02}.png") for i in range(12)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": paths}, features=features).save_to_disk(str(tmp_path / "set"))
    held = HubImages(tmp_path / "set", held_out=0.4).held_out.rows
    assert held.tolist() == ImageFolder(tmp_path, held_out=0.4).held_out.rows.tolist()


def test_columns_of_yes_and_no_of_words_and_of_numbers_are_conditions(tmp_path):
    source = HubImages(saved(tmp_path / "set"), conditions=["Smiling", "word", "id"])
    names = {name: condition.names for name, condition in source.spec.conditions.items()}
    assert names["Smiling"] == ("no", "yes") and names["word"] == ("u", "v") and names["id"][:3] == ("0", "1", "2")
    cond = source.train.fetch(np.array([3, 4])).cond
    assert [cond[name].tolist() for name in names] == [[1, 0], [1, 0], [3, 4]]
    assert source.spec.conditions["Smiling"].frequencies == pytest.approx((5 / 8, 3 / 8))
    assert HubImages(tmp_path / "set", conditions=[]).spec.conditions == {}


def test_a_missing_class_is_null(tmp_path):
    columns = {"image": [Image.fromarray(x) for x in PIXELS[:4]], "kind": ["a", None, "b", "a"]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "set"))
    source = HubImages(tmp_path / "set", conditions=["kind"], held_out=0)
    assert source.train.fetch(np.arange(4)).cond["kind"].tolist() == [0, -1, 1, 0]
    assert source.spec.conditions["kind"].frequencies == pytest.approx((2 / 3, 1 / 3))


def test_bad_names_are_told(tmp_path):
    path = saved(tmp_path / "set")
    for arguments, words in (
        ({"conditions": ["smiling"]}, "has no column 'smiling'; did you mean 'Smiling'?"),
        ({"image_column": "pictures"}, "has no column 'pictures'; did you mean 'picture'?"),
        ({"image_column": "word"}, "the column 'word' of"),
        ({"held_out": 1.0}, "held_out must be at least 0 and below 1, got 1.0"),
    ):
        with pytest.raises(UserError) as error:
            HubImages(path, **arguments)
        assert words in str(error.value)
    datasets.Dataset.from_dict({"a": [1, 2]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(UserError, match="numbers has no column of images among a"):
        HubImages(tmp_path / "numbers")
    (tmp_path / "broken.parquet").write_bytes(b"hello")
    for name in (tmp_path / "broken.parquet", "nobody/nothing"):
        with pytest.raises(UserError) as error:
            HubImages(name)
        assert f"{name} cannot be opened as a dataset (" in str(error.value) and "\n" not in str(error.value)


def test_offsets_that_arrow_would_follow_out_of_the_file_are_refused(tmp_path):
    images = datasets.Dataset.from_dict({"image": [Image.fromarray(x) for x in PIXELS[:5]]})
    images.save_to_disk(str(tmp_path / "set"))
    (file,) = (tmp_path / "set").glob("*.arrow")
    encoded = datasets.load_from_disk(str(tmp_path / "set")).cast_column("image", datasets.Image(decode=False))
    offsets = np.cumsum([0, *(len(x["bytes"]) for x in encoded["image"])]).astype("<i4")
    content, moved = file.read_bytes(), offsets.copy()
    moved[1] = -5
    assert content.count(offsets.tobytes()) == 1
    file.write_bytes(content.replace(offsets.tobytes(), moved.tobytes()))
    with pytest.raises(UserError, match=r"cannot be opened as a dataset .*offset"):
        HubImages(tmp_path / "set")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_the_files_is_no_wait(tmp_path):
    images = datasets.Dataset.from_dict({"image": [Image.fromarray(x) for x in PIXELS[:5]]})
    images.save_to_disk(str(tmp_path / "set"))
    (file,) = (tmp_path / "set").glob("*.arrow")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="is a pipe, socket or device"):
        HubImages(tmp_path / "set")
