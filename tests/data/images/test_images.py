from __future__ import annotations

import hashlib
import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.data import ImageFolder
from advect.data.images.decoding import Buckets, Decoder
from advect.data.images.folder import ImageSplit
from advect.data.images.stores import find_images, holds_images, open_store
from advect.data.splits import split_by_content

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TURNED = 6  # the EXIF orientation of a camera held upright: shown turned a quarter clockwise


def picture(path: Path, size=(20, 20), colour=RED, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def noise(path: Path, seed: int, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        noise(tmp_path / f"{i}.png", i)
    return tmp_path


def decode_image(path: Path, *, size: int, channels: int) -> np.ndarray:
    return Decoder(image_size=size, channels=channels)(path.read_bytes())


def fetch(split, indices, rng=None) -> torch.Tensor:
    return split.fetch(np.asarray(indices), rng).x1


# --- which files ---


def test_files_are_found_below_the_folder_in_sorted_order(tmp_path):
    for name in ("b/2.PNG", "b/ünï/日本.jpg", "a.jpeg", "c.webp", "d.bmp", "b.png"):
        picture(tmp_path / name, format={"PNG": "PNG", "jpg": "JPEG"}.get(name.split(".")[-1]))
    for name in ("notes.txt", ".hidden.png", "._a.jpeg", ".cache/e.png", "png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not an image")
    names, left_out = find_images(tmp_path)
    assert names == ["a.jpeg", "b.png", "b/2.PNG", "b/ünï/日本.jpg", "c.webp", "d.bmp"]
    assert left_out == {".txt": 1, "no suffix": 1}
    source = ImageFolder(tmp_path, image_size=8, held_out=0)
    assert fetch(source.train, range(6)).shape == (6, 3, 8, 8)
    assert source.spec.shape == (3, 8, 8)
    assert (source.spec.modality, source.spec.conditions, len(source.held_out)) == ("image", {}, 0)


def test_links_to_folders_are_followed_but_not_round_in_circles(tmp_path):
    picture(tmp_path / "data" / "a.png")
    picture(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data")
    assert find_images(tmp_path / "data")[0] == ["a.png", "link/b.png"]


def digests(*values: object) -> list[bytes]:
    return [hashlib.sha256(str(value).encode()).digest() for value in values]


def test_the_split_shares_out_the_contents_and_new_files_move_no_old_one():
    old = digests(*range(2000))
    train, rest = split_by_content(old, 0.2)
    assert sorted([*train, *rest]) == list(range(2000))
    assert 330 <= len(rest) <= 470  # 400 expected, 18 the deviation
    more, more_rest = split_by_content([*old, *digests(*range(2000, 2500))], 0.2)
    assert set(train) <= set(more) and set(rest) <= set(more_rest)


@pytest.mark.parametrize("share", [1e-9, 0.05, 0.5, 0.999999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_tiny_folders_have_an_image_in_each_split(share, count):
    train, rest = split_by_content(digests(*range(count)), share)
    assert len(train) and len(rest)


def test_copies_share_a_side_whatever_they_are_called(tmp_path):
    for i in range(40):
        noise(tmp_path / "a" / f"{i}.png", i)
        noise(tmp_path / f"copy of {39 - i}.png", i)
    source = ImageFolder(tmp_path, held_out=0.3)
    contents = [{(tmp_path / name).read_bytes() for name in split.names} for split in (source.train, source.held_out)]
    assert len(source.train) == 2 * len(contents[0]) and len(source.held_out) == 2 * len(contents[1])
    assert not contents[0] & contents[1] and len(contents[0] | contents[1]) == 40
    (tmp_path / "only").mkdir()
    for i in range(3):
        noise(tmp_path / "only" / f"{i}.png", 0)
    assert len(ImageFolder(tmp_path / "only", held_out=0.5).held_out) == 0


def test_one_image_is_for_training(tmp_path):
    picture(tmp_path / "a.png")
    source = ImageFolder(tmp_path)
    assert (len(source.train), len(source.held_out)) == (1, 0)


def test_a_name_with_taken_apart_accents_has_the_same_fingerprint(tmp_path):
    noise(tmp_path / "a" / "\u00e9.png", 0)
    noise(tmp_path / "b" / "e\u0301.png", 0)
    assert ImageFolder(tmp_path / "a").fingerprint == ImageFolder(tmp_path / "b").fingerprint


def test_the_fingerprint_follows_names_and_sizes_and_not_the_place(folder, tmp_path_factory):
    before = ImageFolder(folder).fingerprint
    moved = tmp_path_factory.mktemp("other") / "moved"
    os.rename(folder, moved)
    assert ImageFolder(moved, image_size=8).fingerprint == before
    with (moved / "3.png").open("ab") as file:
        file.write(b"x")
    grown = ImageFolder(moved).fingerprint
    (moved / "3.png").rename(moved / "x.png")
    assert len({before, grown, ImageFolder(moved).fingerprint}) == 3


# --- what becomes of an image ---


def test_a_colour_survives_scaling_and_the_crop_takes_the_centre(tmp_path):
    pixels = np.empty((40, 120, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = RED, GREEN, BLUE
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        for size in (10, 40, 64):
            decoded = decode_image(tmp_path / name, size=size, channels=3)
            assert decoded.shape == (3, size, size)
            inside = decoded[:, 2:-2, 2:-2]  # the filter mixes the neighbours' colours into the outermost pixels
            assert (inside == np.array(GREEN, np.uint8)[:, None, None]).all()


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path):
    path = noise(tmp_path / "a.png", 0, size=16)
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    assert (decode_image(path, size=16, channels=3) == expected).all()
    source = ImageFolder(tmp_path, image_size=16)
    assert torch.equal(
        source.transform.inverse(fetch(source.train, [0]))[0], torch.from_numpy(expected.copy()).float()
    )


def test_scaling_down_averages_and_does_not_pick(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", size=8, channels=1)[0, 1:-1, 1:-1].astype(int)
    assert abs(decoded - 127).max() <= 6


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.empty((40, 40, 3), np.uint8)
    pixels[:20], pixels[20:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = TURNED
    for name, options in (("a.png", {}), ("a.jpg", {"quality": 95})):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif, **options)
        left, right = np.split(decode_image(tmp_path / name, size=10, channels=3).astype(int), 2, axis=2)
        for half, colour in ((left[..., :4], BLUE), (right[..., 1:], RED)):  # what was above is to the right
            assert abs(half - np.array(colour)[:, None, None]).max() < 12


def test_every_mode_becomes_colour_or_grey(tmp_path):
    cases = {
        "grey.png": (Image.new("L", (9, 9), 90), (90, 90, 90)),
        "opaque.png": (Image.new("RGBA", (9, 9), (*BLUE, 255)), BLUE),
        "clear.png": (Image.new("RGBA", (9, 9), (0, 0, 0, 0)), (255, 255, 255)),
        "half.webp": (Image.new("RGBA", (9, 9), (0, 0, 0, 128)), (127, 127, 127)),
        "grey_alpha.png": (Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        "palette.png": (Image.new("RGB", (9, 9), GREEN).quantize(4), GREEN),
        "bits.png": (Image.new("1", (9, 9), 1), (255, 255, 255)),
        "deep.png": (Image.fromarray(np.full((9, 9), 257 * 100 + 50, np.uint16)), (100, 100, 100)),
        "print.jpg": (Image.new("CMYK", (9, 9), (0, 0, 0, 0)), (255, 255, 255)),
    }
    for name, (image, colour) in cases.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        decoded = decode_image(tmp_path / name, size=6, channels=3)
        assert decoded.shape == (3, 6, 6), name
        assert abs(decoded[:, 3, 3].astype(int) - colour).max() <= 1, (name, decoded[:, 3, 3])
        assert decode_image(tmp_path / name, size=6, channels=1).shape == (1, 6, 6)
    assert abs(int(decode_image(tmp_path / "palette.png", size=6, channels=1)[0, 3, 3]) - 150) <= 1  # green's luma


def test_a_large_jpeg_is_decoded_to_what_it_shows(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 1024, dtype=np.uint8), (700, 1024))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.jpg", quality=95)
    row = decode_image(tmp_path / "a.jpg", size=32, channels=1)[0, 16].astype(float)
    centre = (162 + (np.arange(32) + 0.5) * 700 / 32) * 255 / 1024
    assert abs(row - centre).max() < 3


# --- fetching ---


def test_threads_fetch_what_one_thread_fetches(folder):
    split = ImageFolder(folder, image_size=16).train
    batches = [np.roll(np.arange(len(split)), shift) for shift in range(16)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda batch: fetch(split, batch), batches))
    assert all(torch.equal(a, fetch(split, b)) for a, b in zip(threaded, batches, strict=True))


def test_random_crops_come_from_the_generator_alone(tmp_path):
    for i in range(4):
        ramp = np.broadcast_to(np.arange(40, dtype=np.uint8) + 40 * i, (8, 40)).copy()
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    options = {"image_size": 8, "channels": 1, "held_out": 0.4}
    source, centred = ImageFolder(tmp_path, random_crop=True, **options), ImageFolder(tmp_path, **options)
    indices = np.arange(100) % len(source.train)
    plain = fetch(source.train, indices)
    assert torch.equal(plain, fetch(centred.train, indices, CounterRng(0, 1, 100)))
    one, same, other = (fetch(source.train, indices, CounterRng(0, step, 100)) for step in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    starts = (one - plain)[:, 0, 0, 0] * 127.5  # how far each crop moved, in pixels
    assert len(set(starts.round().tolist())) > 20 and starts.round().abs().max() <= 16
    held = np.arange(len(source.held_out))
    assert torch.equal(fetch(source.held_out, held, CounterRng(0, 1, len(held))), fetch(source.held_out, held))


# --- classes and splits that folders name ---


def test_sub_folders_are_classes_where_all_images_lie_in_them(tmp_path):
    for i, name in enumerate(("b/1.png", "a/deep/2.png", "b/3.png", "c d/4.png")):
        noise(tmp_path / name, i)
    source = ImageFolder(tmp_path, held_out=0)
    assert source.spec.conditions["label"].names == ("a", "b", "c d")
    assert source.spec.conditions["label"].frequencies == (0.25, 0.5, 0.25)
    batch = source.train.fetch(np.array([3, 0, 1]))
    assert batch.cond["label"].tolist() == [2, 0, 1]
    assert not ImageFolder(tmp_path, labels="no").spec.conditions
    noise(tmp_path / "loose.png", 9)
    assert not ImageFolder(tmp_path).spec.conditions
    with pytest.raises(UserError, match=r"but loose\.png lies in none"):
        ImageFolder(tmp_path, labels="yes")


def test_folders_called_train_and_test_are_the_split_and_no_classes(tmp_path):
    for i, name in enumerate(("train/x/1.png", "train/y/2.png", "test/x/3.png", "train/y/4.png")):
        noise(tmp_path / "set" / name, i)
    source = ImageFolder(tmp_path)
    assert source.held_out.names == ["set/test/x/3.png"]
    assert source.spec.conditions["label"].names == ("x", "y")
    assert len(ImageFolder(tmp_path, held_out=0).train) == 4


# --- images that cannot be read ---


def test_an_unreadable_image_is_replaced_counted_and_named(folder):
    (folder / "3.png").write_text("this is text")
    source = ImageFolder(folder, image_size=16, held_out=0, skip_unreadable=True)
    assert list(source.unreadable) == [str(folder / "3.png")]  # by its first bytes
    x = fetch(source.train, range(8))
    assert torch.equal(x[3], x[4]) and not torch.equal(x[2], x[3])
    assert list(source.unreadable) == [str(folder / "3.png")]
    assert "it is in no image format" in source.unreadable[str(folder / "3.png")]
    assert source.train.find_unreadable() == source.unreadable
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"2 images cannot be read, more than 1%, among them .*7\.png"):
        fetch(source.train, range(8))
    (folder / "7.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 images cannot be read, more than 1%, among them"):
        ImageFolder(folder, skip_unreadable=True)  # before anything is trained


def test_the_label_is_that_of_the_image_that_was_taken(tmp_path):
    for i in range(4):
        noise(tmp_path / "ab"[i // 2] / f"{i}.png", i)
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    source = ImageFolder(tmp_path, held_out=0, skip_unreadable=True)
    assert source.train.fetch(np.array([0, 1, 2])).cond["label"].tolist() == [0, 1, 1]


def test_a_file_that_cannot_be_opened_is_skipped_too(folder):
    (folder / "9.png").symlink_to(folder / "nothing.png")
    source = ImageFolder(folder, image_size=16, held_out=0, skip_unreadable=True)
    assert list(source.unreadable) == [str(folder / "9.png")]
    x = fetch(source.train, range(9))
    assert torch.equal(x[8], x[0]) and len(source.unreadable) == 1


def test_what_fetching_an_image_takes_does_not_grow_with_their_number(folder):
    whole = ImageFolder(folder, image_size=8).train
    many = ImageSplit(whole.store, np.zeros(1_000_000, np.int64), {}, whole.decoder)
    many.fetch(np.array([0]))
    tracemalloc.start()
    many.fetch(np.array([5, 600_000]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6  # a list of the other images would be 8 MB


def test_a_decompression_bomb_is_named(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.png cannot be read as an image \(Image size \(400000000 pixels\)"):
        fetch(ImageFolder(tmp_path, skip_unreadable=False).train, [0])


# --- bad input ---


def test_a_damaged_image_is_named(folder):
    source = ImageFolder(folder, held_out=0, skip_unreadable=False)
    content = (folder / "3.png").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello", content[:40] + b"\xff" * 40 + content[80:]):
        (folder / "3.png").write_bytes(damaged)
        with pytest.raises(UserError) as error:
            fetch(source.train, range(8))
        assert f"{folder / '3.png'} cannot be read as an image (" in str(error.value)
        assert "\n" not in str(error.value)
    fetch(source.train, [0, 1, 2, 4])


def test_a_jpeg_cut_short_is_an_error_and_not_half_grey(tmp_path):
    noise(tmp_path / "a.jpg", 0, size=64)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-500])
    with pytest.raises(UserError, match="truncated"):
        fetch(ImageFolder(tmp_path, skip_unreadable=False).train, [0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 0}, "image_size must be at least 1 and at most 16,384, got 0"),
        ({"channels": 2}, "channels must be 1 (grey), 3 (colour) or 4 (with alpha), got 2"),
        ({"image_size": (8, 0)}, "image_size must be at least 1 and at most 16,384, got 8 0"),
        ({"crop": 0}, "crop must be at least 1 and at most 16,384, got 0"),
        ({"background": "whyte"}, "background 'whyte' is no colour; did you mean 'white'?"),
        ({"background": (0, 0, 256)}, "background must be three numbers from 0 to 255, got (0, 0, 256)"),
        ({"labels": "yes"}, "labels='yes' needs a sub-folder for each class, but 0.png lies in none"),
        ({"labels": True}, "labels must be 'auto', 'yes' or 'no', got True"),
        ({"held_out": 1}, "held_out must be at least 0 and below 1, got 1"),
        ({"held_out": -0.1}, "got -0.1"),
        ({"data_dir": "nowhere"}, "data_dir 'nowhere' does not exist; name the folder that holds the images"),
        ({"data_dir": None}, "data_dir is not given"),
    ],
)
def test_bad_arguments(folder, arguments, words):
    with pytest.raises(UserError) as error:
        ImageFolder(arguments.pop("data_dir", folder), **arguments)
    assert words in str(error.value)


def test_a_folder_without_images_and_a_file_in_its_place(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"holds no image; put pictures in it"):
        ImageFolder(tmp_path)
    with pytest.raises(UserError, match="is a file, not a folder"):
        ImageFolder(tmp_path / "notes.txt")


def test_a_link_to_nothing_is_named(folder):
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    with pytest.raises(UserError, match=r"gone\.png cannot be read \(No such file"):
        ImageFolder(folder, skip_unreadable=False)


FORMATS = {"GIF": ".gif", "TIFF": ".tif", "JPEG": ".jfif", "PPM": ".ppm", "PNG": "", "WEBP": ".dat", "BMP": ".img"}


@pytest.mark.parametrize("archive", [None, "zip", "tar", "gztar"])
def test_pictures_are_told_by_their_content_and_others_are_counted(tmp_path, caplog, archive):
    for i, (kind, suffix) in enumerate(FORMATS.items()):
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / f"{i}{suffix}", kind)
    for name, content in {"a.txt": b"P6 is no picture here", "b.wav": b"RIFF....WAVE", "c": b"BMI of all"}.items():
        (tmp_path / name).write_bytes(content)
    place = tmp_path
    if archive:
        place = Path(shutil.make_archive(str(tmp_path.with_name("all")), archive, tmp_path))
    with caplog.at_level("INFO"):
        data = ImageFolder(place, image_size=8, held_out=0.0)
    assert len(data.train) == len(FORMATS) and holds_images(place)
    red = ((data.train.fetch(np.arange(7)).x1[:, 0, 0, 0] + 1) * 127.5).sort().values
    assert torch.allclose(red, torch.arange(0.0, 70, 10), atol=3)
    assert "3 files are left out as no picture" in caplog.text and ".wav 1" in caplog.text


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        (np.array([[0, 0.5], [0.25, 1]], np.float32), "F", [0, 128, 64, 255]),
        (np.array([[0, 300], [0, 1]], np.float32), "F", "real numbers lie in 0 to 300, not 0 to 1"),
        (np.array([[0, np.nan], [0, 1]], np.float32), "F", "real numbers lie in"),
        (np.array([[0, 255], [7, 1]], np.int32), "I", "32-bit whole numbers, 0 to 255, have no known white"),
        (np.array([[0, 65535], [257, 514]], np.uint16), "I;16", [0, 255, 1, 2]),
    ],
)
def test_grey_values_of_other_types_are_scaled_by_a_rule_or_refused(tmp_path, values, mode, expected):
    image = Image.fromarray(values)
    assert image.mode == mode
    image.save(tmp_path / "x.tif")
    decode = Decoder(image_size=2, channels=1)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            decode((tmp_path / "x.tif").read_bytes())
    else:
        assert decode((tmp_path / "x.tif").read_bytes()).reshape(-1).tolist() == expected


# --- sizes of their own ---


def test_images_of_several_sizes_keep_their_shapes(tmp_path):
    """Those within the area as they are, larger ones scaled to it; held out, and without a bucket, all of one size."""
    shapes = {(16, 16): 4, (16, 24): 4, (32, 16): 4, (96, 48): 4}
    for (height, width), count in shapes.items():
        for i in range(count):
            values = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / f"{height}x{width} {i}.png")
    data = ImageFolder(tmp_path, image_size=24, bucket_step=8, held_out=0.0)
    assert sorted(data.train.shapes) == [(3, 16, 16), (3, 16, 24), (3, 32, 16)]  # 96 x 48 is 34 x 17 of 24 x 24's area
    for bucket, shape in enumerate(data.train.shapes):
        rows = np.flatnonzero(data.train.buckets == bucket)
        x = data.train.fetch(rows, bucket=bucket).x1
        assert x.shape == (8 if shape == (3, 32, 16) else 4, *shape)
        for row, image in zip(rows, x, strict=True):
            name = data.train.names[row]
            if not name.startswith("96"):
                exact = np.asarray(Image.open(tmp_path / name)).transpose(2, 0, 1)
                assert np.array_equal(data.transform.inverse(image[None])[0].round().numpy(), exact)
    assert data.train.fetch(np.arange(3)).x1.shape == (3, 3, 24, 24) and data.spec.shape == (3, 24, 24)


def test_buckets_follow_the_orientation_and_forgive_damage(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = TURNED
    picture(tmp_path / "a.jpg", (24, 16), exif=exif)
    picture(tmp_path / "b.jpg", (24, 16))
    (tmp_path / "c.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:20])
    found = Buckets.of(open_store(tmp_path), np.arange(3), Decoder(image_size=24), 8)
    assert [found.decoders[n].shape[1:] for n in found.numbers] == [(24, 16), (16, 24), (24, 24)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bucket_step": 0}, "bucket_step must be at least 1 and at most 16,384, got 0"),
        ({"bucket_step": 9}, "bucket_step must be between 1 and the sides of image_size, got 9"),
        ({"bucket_step": 4, "crop": 8}, "bucket_step keeps the shapes of images, and crop cuts squares"),
    ],
)
def test_wrong_buckets(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        ImageFolder(folder, image_size=8, **arguments)
