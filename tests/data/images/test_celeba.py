from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.data import CelebA
from advect.data.autodetect import autodetect
from advect.data.images.celeba import _usual_parts

NAMES = ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]
FILES = [f"{i:06}.jpg" for i in range(1, 11)]
PARTS = [0, 0, 0, 0, 0, 0, 1, 1, 2, 0]
SMILING = [1, -1, 1, -1, -1, -1, 1, -1, 1, -1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten small faces in upstream's layout: 178 x 218, the number of the image as its grey."""
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    for i, name in enumerate(FILES):
        pixels = np.full((218, 178), 20 * i, np.uint8)
        pixels[:39], pixels[179:], pixels[:, :19], pixels[:, 159:] = 255, 255, 255, 255  # all outside 140 x 140
        Image.fromarray(pixels).save(root / "img_align_celeba" / name, quality=95)
    (root / "list_eval_partition.txt").write_text("".join(f"{f} {p}\n" for f, p in zip(FILES, PARTS, strict=True)))
    rows = [f"{f} -1 {1 if i % 2 else -1:2} {s:2}  1\n" for i, (f, s) in enumerate(zip(FILES, SMILING, strict=True))]
    (root / "list_attr_celeba.txt").write_text(f"{len(FILES)}\n{' '.join(NAMES)} \n{''.join(rows)}")
    return root


def greys(split) -> list[int]:
    """The numbers of the images of a split, from their middle pixels."""
    x = split.fetch(np.arange(len(split))).x1
    return ((x[:, 0, x.shape[2] // 2, x.shape[3] // 2] + 1) * 127.5 / 20).round().int().tolist()


def test_the_splits_are_upstreams(folder):
    source = CelebA(folder, image_size=16)
    assert (source.name, source.spec.shape, source.spec.conditions) == ("celeba", (3, 16, 16), {})
    assert greys(source.train) == [0, 1, 2, 3, 4, 5, 9] and greys(source.held_out) == [6, 7]
    assert greys(CelebA(folder, image_size=16, held_out="test").held_out) == [8]


def test_attributes_are_conditions_in_the_order_asked(folder):
    source = CelebA(folder, image_size=8, attributes=("Smiling", "Male"))
    assert list(source.spec.conditions) == ["Smiling", "Male"]
    smiling = source.spec.conditions["Smiling"]
    assert smiling.names == ("no", "yes") and smiling.frequencies == pytest.approx((5 / 7, 2 / 7))
    cond = source.train.fetch(np.array([2, 6, 0])).cond
    assert cond["Smiling"].tolist() == [1, 0, 1] and cond["Male"].tolist() == [0, 1, 0]
    assert source.held_out.fetch(np.arange(2)).cond["Smiling"].tolist() == [1, 0]


def test_the_crop_is_the_140_pixels_in_the_centre(folder):
    pixels = CelebA(folder, image_size=140).transform.inverse(CelebA(folder, image_size=140).train.fetch([0]).x1)
    assert pixels.max() < 60  # the frame is white and begins one pixel further out; JPEG rings a little
    assert CelebA(folder, image_size=142, crop=142).train.fetch([0]).x1[0, 0, 71, 0] > 0.5
    assert CelebA(folder, image_size=64, crop=None).train.fetch([0]).x1[0, 0, 32, 0] > 0.5


def test_zipped_images_upstreams_folders_and_mirrors_lists_are_the_same(folder, tmp_path):
    plain = CelebA(folder, image_size=8, attributes=["Young", "Smiling"])
    other = tmp_path / "other"
    for place in ("Img", "Eval", "Anno"):
        (other / place).mkdir(parents=True)
    with zipfile.ZipFile(other / "Img" / "img_align_celeba.zip", "w") as archive:
        for path in sorted((folder / "img_align_celeba").iterdir()):
            archive.write(path, path.name)
    lines = (folder / "list_attr_celeba.txt").read_text().splitlines()[1:]
    table = ["image_id," + ",".join(NAMES), *(",".join(line.split()) for line in lines[1:])]
    (other / "Anno" / "list_attr_celeba.csv").write_text("\n".join(table))
    rows = (folder / "list_eval_partition.txt").read_text().replace(" ", ",")
    (other / "Eval" / "list_eval_partition.csv").write_text("image_id,partition\n" + rows)
    packed = CelebA(other, image_size=8, attributes=["Young", "Smiling"])
    assert packed.fingerprint == plain.fingerprint and packed.spec == plain.spec
    ours, theirs = (source.train.fetch(np.arange(7)) for source in (plain, packed))
    assert torch.equal(ours.x1, theirs.x1) and torch.equal(ours.cond["Smiling"], theirs.cond["Smiling"])


def test_the_fingerprint_follows_the_parts(folder):
    before = CelebA(folder).fingerprint
    path = folder / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("000010.jpg 0", "000010.jpg 1"))
    assert CelebA(folder).fingerprint != before


def test_lists_that_disagree_with_the_images_are_told(folder):
    (folder / "img_align_celeba" / "000003.jpg").rename(folder / "img_align_celeba" / "x.jpg")
    with pytest.raises(UserError) as error:
        CelebA(folder)
    assert "list_eval_partition.txt lists '000003.jpg', which is not there; 2 of 10 names disagree" in str(error.value)
    (folder / "img_align_celeba" / "x.jpg").rename(folder / "img_align_celeba" / "000003.jpg")
    shutil.copy(folder / "img_align_celeba" / "000003.jpg", folder / "img_align_celeba" / "more.jpg")
    with pytest.raises(UserError, match=r"does not list the image 'more\.jpg'; 1 of 10"):
        CelebA(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attributes": ["smiling"]}, "CelebA has no attribute 'smiling'; did you mean 'Smiling'?"),
        ({"attributes": ["qqq"]}, "; choose from 5_o_Clock_Shadow, Male, Smiling, Young"),
        ({"held_out": "tests"}, "did you mean 'test'?"),
        ({"crop": 0}, "crop must be at least 1 and at most 16,384, got 0"),
    ],
)
def test_bad_arguments(folder, arguments, words):
    with pytest.raises(UserError) as error:
        CelebA(folder, **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("list_eval_partition.txt", "000002.jpg 0", "000002.jpg 3", "line 2 is not an image's name and 0, 1 or 2"),
        ("list_eval_partition.txt", "000002.jpg 0", "000002.jpg", "line 2 is not an image's name"),
        ("list_attr_celeba.txt", "000004.jpg -1", "000004.jpg", "line 6 has not -1 or 1 for each of 4 attributes"),
        ("list_attr_celeba.txt", "000004.jpg", "000044.jpg", "lists '000044.jpg', which is not there"),
    ],
)
def test_damaged_lists_are_named(folder, name, old, new, words):
    (folder / name).write_text((folder / name).read_text().replace(old, new))
    with pytest.raises(UserError) as error:
        CelebA(folder, attributes=["Male"])
    assert words in str(error.value) and str(folder / name) in str(error.value)


def test_without_the_list_of_parts_it_is_still_celeba(folder, caplog):
    (folder / "list_eval_partition.txt").unlink()
    assert autodetect(folder)[0][0] is CelebA
    with caplog.at_level("INFO"):
        source = CelebA(folder, image_size=16, attributes=["Smiling"])
    parts = [set(greys(split)) for split in (source.train, source.held_out)]
    assert parts[1] and not parts[0] & parts[1] and "a tenth is held out by name" in caplog.text
    assert source.spec.conditions["Smiling"].names == ("no", "yes")


def test_the_numbers_of_all_images_are_upstreams_parts():
    store = SimpleNamespace(names=[f"img_align_celeba/{i:06}.jpg" for i in range(1, 202_600)])
    assert np.bincount(_usual_parts(store)).tolist() == [162_770, 19_867, 19_962]


def test_what_is_missing_is_named(folder):
    (folder / "list_attr_celeba.txt").unlink()
    CelebA(folder)
    with pytest.raises(UserError, match=r"has no list_attr_celeba\.txt or list_attr_celeba\.csv; put it there"):
        CelebA(folder, attributes=["Male"])
    (folder / "img_align_celeba").rename(folder / "images")
    with pytest.raises(UserError, match="has no img_align_celeba or"):
        CelebA(folder)
