"""Damaged and unsuitable data through the command line: one sentence, exit status 2, and nothing left behind."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect import load
from advect.core.errors import UserError

QUICK = "--max-steps 2 --batch-size 8 --sample-every 0 --log-every 1 --lr-warmup-steps 0 --run-dir run"
UNET = (
    "--image-size 8 --model-channels 8 --channel-mult 1 1 --attention-resolutions --num-res-blocks 1 --num-workers 0"
)
RNG = np.random.default_rng(0)


def png(shape: tuple[int, ...] = (12, 12, 3), suffix: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(file, suffix)
    return file.getvalue()


def folder(name: str, count: int = 20, **others: bytes) -> None:
    place = Path(name)
    place.mkdir()
    for i in range(count):
        (place / f"{i}.png").write_bytes(png())
    for i, content in others.items():
        (place / f"{i}.png").write_bytes(content)


def bomb() -> bytes:
    """A PNG of 70 bytes that says it is 30,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def tar(name: str, *members: str) -> None:
    with tarfile.open(name, "w") as archive:
        for member in members:
            info, content = tarfile.TarInfo(member), png() if member.endswith("png") else b"1"
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def celeba(listed: int) -> None:
    place = Path("celeba/img_align_celeba")
    place.mkdir(parents=True)
    for i in range(12):
        (place / f"{i}.jpg").write_bytes(png((218, 178, 3), "JPEG"))
    names = [f"{i}.jpg" for i in range(listed)]
    (place.parent / "list_eval_partition.txt").write_text("".join(f"{n} {i % 3}\n" for i, n in enumerate(names)))
    (place.parent / "list_attr_celeba.txt").write_text(
        f"{listed}\nSmiling Male\n" + "".join(f"{n} 1 -1\n" for n in names)
    )


def cells(change: Callable[[np.ndarray], None] = lambda x: None, genes: str = "abcdef") -> None:
    """60 cells in ``c.h5ad``: the category ``kind`` has the values x and y, and a third that no cell has."""
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    counts = RNG.poisson(3, (60, len(genes))).astype(np.float32)
    change(counts)
    obs = pd.DataFrame({"kind": pd.Categorical(["x", "y"] * 30, ["x", "never", "y"])}, [f"c{i}" for i in range(60)])
    anndata.AnnData(counts, obs, pd.DataFrame(index=list(genes))).write_h5ad("c.h5ad")


def put(row: int, gene: int, value: float) -> Callable[[np.ndarray], None]:
    def change(x: np.ndarray) -> None:
        x[row, gene] = value

    return change


def write(name: str, text: str) -> Callable[[], None]:
    return lambda: Path(name).write_text(text) and None


def bad_zip() -> None:
    with zipfile.ZipFile("bad.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("../../b.png", png())


ROWS = "".join(f"{i / 7},{'uv'[i % 2]}\n" for i in range(40))
BAD = {
    "no image": (lambda: folder("none", 0), "none", "'none' is a folder without data that is known here"),
    "text alone": (lambda: folder("t", 0, a=b"text"), "t", "t/a.png among them (it is in no image format"),
    "bomb alone": (lambda: folder("t", 0, a=bomb()), "t", "Image size (900000000 pixels) exceeds limit"),
    "many texts": (lambda: folder("t", a=b"x", b=b"yy"), "t", "2 images cannot be read, more than 1%, among them"),
    "zip": (bad_zip, "bad.zip", "bad.zip has the member '../../b.png', which leads out of it"),
    "tar": (lambda: tar("bad.tar", "a.png", "../b.png"), "bad.tar", "has the member '../b.png', which leads out"),
    "shard": (lambda: tar("s.tar", "a.png", "a.cls", "../b.png"), "s.tar", "has the member '../b.png', which leads"),
    "partition": (lambda: celeba(14), "celeba", "lists '12.jpg', which is not there; 2 of 14 names disagree"),
    "attribute": (lambda: celeba(12), "celeba --attributes Smilng", "no attribute 'Smilng'; did you mean 'Smiling'?"),
    "negative": (lambda: cells(put(3, 2, -2)), "c.h5ad", "c.h5ad holds negative values, down to -2, so it is not"),
    "NaN": (lambda: cells(put(3, 2, np.nan)), "c.h5ad", "c.h5ad holds 1 NaN or infinite values, the first in cell 3"),
    "genes": (lambda: cells(genes="abcadf"), "c.h5ad", "c.h5ad has 1 duplicate gene names, the first 'a'"),
    "obs": (cells, "c.h5ad --conditions knd", "conditions names 'knd', which obs has not; did you mean 'kind'?"),
    "layer": (cells, "c.h5ad --layer raw", "c.h5ad has no layer 'raw'; it has none, leave layer out"),
    "control": (cells, "c.h5ad --control kind=z", "control: no cell has kind 'z'; choose from x, y"),
    "ragged": (write("r.csv", f"a,b\n{ROWS}1,2,3\n"), "r.csv", "r.csv line 42 has 3 fields, the header 2"),
    "missing": (write("m.csv", "a,b\n" + "1.5,\n" * 9), "m.csv", "column 'b' has no values; leave it out with"),
    "column": (write("k.csv", f"a,kind\n{ROWS}"), "k.csv --conditions knd", "no column; did you mean 'kind'?"),
    "header": (write("h.csv", "a,b\n"), "h.csv", "and no row; give at least one row"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_told_in_a_sentence_and_leave_nothing(
    case: str, advect: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words, message = BAD[case]
    make()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        advect("train --data", words, "--max-steps 2 --run-dir run")
    assert message in str(error.value) and "\n" not in str(error.value)
    capsys.readouterr()
    try:  # the doctor says the same, as a finding or as the mistake that it is
        with pytest.raises(SystemExit) as stop:
            advect("doctor --data", words)
        assert stop.value.code == 1
        assert "problem" in capsys.readouterr().out
    except UserError as error:
        assert message in str(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_unreadable_image_is_passed_over_counted_and_named(
    advect: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("text", b"no image"), ("bomb", bomb()), ("half", png()[:200])):
        folder(name, **{"käputt": content})
        advect("train --data", name, UNET, f"{QUICK}-{name} --max-steps 12 --held-out 0")
        said = capsys.readouterr().out
        assert f"{name} is a folder of 21 images" in said
        assert "note: 1 image could not be read and" in said and "käputt.png" in said


def test_images_of_all_kinds_and_sizes_train_together(advect: Callable[..., None]) -> None:
    folder("mixed", 4)
    for name, image in {
        "grey": Image.new("L", (5, 30), 9),
        "palette": Image.new("RGB", (9, 9), "red").convert("P"),
        "alpha": Image.new("RGBA", (40, 9), (255, 0, 0, 0)),
        "sixteen": Image.fromarray(np.full((9, 9), 65535, np.uint16)),
        "bits": Image.new("1", (3, 3)),
    }.items():
        image.save(f"mixed/{name}.png")
    Image.new("RGB", (20, 10), "blue").save("mixed/w.webp", lossless=True)
    Image.new("CMYK", (20, 10)).save("mixed/c.jpg")
    for channels in (1, 3, 4):
        advect("train --data mixed --channels", channels, UNET, f"{QUICK}{channels}")
        assert load(f"run{channels}").sample(2, steps=2).x.shape == (2, channels, 8, 8)


def test_empty_categories_and_silent_genes_come_back(advect: Callable[..., None]) -> None:
    def silence(x: np.ndarray) -> None:
        x[:, 1] = 0
        x[4] = 0

    cells(silence)
    advect("train --data c.h5ad --conditions kind --width 8 --depth 1", QUICK)
    Path("c.h5ad").unlink()
    flow = load("run")
    assert flow.spec.conditions["kind"].names == ("x", "y")  # none learns the value that no cell has
    x = flow.sample(4, steps=2).x
    assert x.isfinite().all() and (x >= 0).all()
