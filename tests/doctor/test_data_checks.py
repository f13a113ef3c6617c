"""Each verdict on data, by figures made by hand, and by small files with the trouble in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advect.core.errors import UserError
from advect.data.copies import Copies
from advect.data.images.modality import Images
from advect.data.vectors.modality import Vectors
from advect.doctor import Finding
from advect.doctor import data as d
from advect.doctor import formats as f
from advect.doctor.examine import examine_data as examine_words

VALUES = d.ValueStats(
    train=5000,
    held_out=500,
    looked=2000,
    modality=Vectors,
    shape=(4,),
    low=-3.0,
    high=9.0,
    mean=0.0,
    deviation=1.0,
    extreme=4.0,
    features=4,
)
PICTURES = d.ImageStats(looked=100, total=1000, asked=(64, 64), least=100)
CELLS = f.CellStats(
    cells=1000,
    genes=2000,
    looked=1000,
    lowest=0.0,
    highest=300.0,
    whole=True,
    infinite=0,
    silent=0,
    empty=0,
    libraries=(900.0, 2000.0, 4000.0),
)
AGE = f.ColumnStats(name="age", type="Int64", rows=100, missing=0.0, distinct=60, named=False)
TOWN = f.ColumnStats(name="town", type="string", rows=100, missing=0.0, distinct=5, named=True)


def copies(count: int) -> Copies:
    names = [f"row {i}" for i in range(count)]
    places = np.arange(count)
    return Copies(
        looked=2000,
        equal=count,
        otherwise=[],
        train=2000,
        places=places,
        first=places,
        names=names,
        first_names=names,
    )


TROUBLE = {
    "few": (d.check_count, replace(VALUES, train=100), "note", "--dropout"),
    "nothing held out": (d.check_held_out, replace(VALUES, held_out=0), "note", "held out"),
    "NaN": (d.check_infinite, replace(VALUES, infinite=3), "problem", "fill"),
    "equal": (d.check_range, replace(VALUES, low=1.0, high=1.0), "problem", "other data"),
    "outliers": (d.check_range, replace(VALUES, extreme=400.0), "note", "logarithm"),
    "dark": (d.check_range, replace(VALUES, modality=Images, deviation=0.01), "problem", "--value-range"),
    "unscaled": (d.check_range, replace(VALUES, deviation=15.0, extreme=19.0), "problem", "standardise"),
    "constant": (d.check_constant, replace(VALUES, constant=2), "note", "leave them out"),
    "copies": (d.check_copies, copies(1500), "problem", "--drop-copies"),
    "some copies": (d.check_copies, copies(100), "note", "--copies FILE"),
    "labels": (d.check_conditions, replace(copies(0), otherwise=["row 3"]), "note", "labelled wrongly"),
    "rare": (d.check_classes, d.ClassShares(name="l", shares={"a": 0.998, "b": 0.002}, train=7500), "note", "more"),
    "rarest": (
        d.check_classes,
        d.ClassShares(name="l", shares={"a": 0.9998, "b": 2e-4}, train=5000),
        "problem",
        "join",
    ),
    "not held out": (
        d.check_classes,
        d.ClassShares(name="l", shares={"a": 0.9, "b": 0.1}, train=500, held_out={"a": 9, "b": 0}),
        "problem",
        "--held-out",
    ),
    "uneven": (d.check_classes, d.ClassShares(name="l", shares={"a": 0.98, "b": 0.02}, train=5000), "note", "--cond"),
    "one class": (d.check_classes, d.ClassShares(name="l", shares={"a": 1.0}, train=5000), "note", "leave"),
    "unreadable": (d.check_unreadable, replace(PICTURES, unreadable={"a": "x", "b": "y"}), "problem", "repair"),
    "one unreadable": (d.check_unreadable, replace(PICTURES, unreadable={"a": "x"}), "note", "repair"),
    "small": (d.check_sizes, replace(PICTURES, smaller=80, least=32), "problem", "--image-size 32"),
    "grey": (d.check_grey, replace(PICTURES, grey=99), "note", "--channels 1"),
    "lengths": (f.check_lengths, f.LengthStats(shortest=1, median=10, longest=500), "note", "--max-length 20"),
    "array": (f.check_array, f.ArrayStats(shape=(9, 2), dtype="<f4", looked=9, infinite=1), "problem", "remove"),
    "logarithms": (f.check_units, replace(CELLS, whole=False, highest=8.0), "note", "--no-log1p"),
    "scaled": (f.check_units, replace(CELLS, whole=False, lowest=-2.0), "note", "--layer"),
    "normalised": (f.check_units, replace(CELLS, whole=False, highest=900.0), "note", "--no-normalise"),
    "NaN cells": (f.check_units, replace(CELLS, infinite=2), "problem", "remove"),
    "many genes": (f.check_genes, replace(CELLS, genes=20_000), "note", "--highly-variable"),
    "silent": (f.check_genes, replace(CELLS, silent=100), "note", "--highly-variable"),
    "libraries": (f.check_libraries, replace(CELLS, libraries=(10.0, 2000.0, 9000.0)), "note", "filter"),
    "empty cells": (f.check_libraries, replace(CELLS, empty=4), "note", "filter"),
    "all missing": (f.check_missing, [AGE, replace(TOWN, missing=1.0)], "problem", "--drop town"),
    "mostly missing": (f.check_missing, [replace(AGE, missing=0.7)], "note", "--drop age"),
    "ids": (f.check_ids, [replace(AGE, name="id", distinct=100), TOWN], "note", "--drop id"),
    "rare names": (f.check_rare, [AGE, replace(TOWN, rare=3)], "note", "join"),
    "constant column": (f.check_rare, [AGE, replace(TOWN, distinct=1)], "note", "not learned"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_told(name: str) -> None:
    check, figures, level, words = TROUBLE[name]
    found = check(figures)
    assert found is not None and found.level == level
    assert words in found.advice
    assert found.figures


def test_good_data_are_found_good() -> None:
    found = [d.check_count(VALUES), d.check_range(VALUES), d.check_copies(copies(0)), d.check_held_out(VALUES)]
    found += [d.check_unreadable(PICTURES), d.check_sizes(PICTURES), d.check_grey(PICTURES)]
    found += [f.check_units(CELLS), f.check_genes(CELLS), f.check_libraries(CELLS)]
    columns = [AGE, TOWN]
    found += [f.check_columns(columns), f.check_missing(columns), f.check_ids(columns), f.check_rare(columns)]
    found += [d.check_classes(d.ClassShares(name="l", shares={"a": 0.6, "b": 0.4}, train=5000))]
    found += [f.check_lengths(f.LengthStats(shortest=8, median=10, longest=12))]
    assert {finding.level for finding in found if finding} == {"ok"}


def examine_data(path: Path, *words: str, look: int = 2000) -> list[Finding]:
    return examine_words(["--data", str(path), *words], look=look)


def titled(findings: list[Finding], words: str) -> Finding:
    found = [finding for finding in findings if words in finding.title]
    assert len(found) == 1, [finding.title for finding in findings]
    return found[0]


def test_a_folder_of_pictures_with_every_trouble(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(30):
        grey = rng.integers(0, 256, (40, 32, 1), dtype=np.uint8)
        Image.fromarray(grey.repeat(3, 2)).save(tmp_path / f"{i} picture.png")
    (tmp_path / "broken.png").write_text("no image")
    found = examine_data(tmp_path, "--image-size", "64", look=100)
    unreadable = titled(found, "cannot be read")
    assert unreadable.figures["unreadable"] == 1 and "broken.png" in str(unreadable.figures["the first"])
    small = titled(found, "smaller than asked")
    assert small.level == "problem" and small.figures["shortest side"] == 32 and small.figures["asked"] == "64x64"
    assert titled(found, "grey").figures["without colour"] == unreadable.figures["looked at"] - 1  # type: ignore[operator]
    usual = examine_data(tmp_path)
    assert titled(usual, "as large as asked").figures["asked"] == "32x32"  # what advect train would take
    assert "Preset images would" in titled(usual, "would train").title


def test_an_array_with_nan_and_copies(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    x[:, 1] = 2.0
    x[100:150], x[150:200] = x[0], x[1]
    np.save(tmp_path / "x.npy", x)
    found = examine_data(tmp_path / "x.npy")
    assert titled(found, "never change").figures["constant"] == 1
    assert titled(found, "more than once").level == "note"
    assert titled(found, "would train").level == "ok"
    x[5, 0] = np.nan
    np.save(tmp_path / "y.npy", x)
    found = examine_data(tmp_path / "y.npy")
    assert titled(found, "NaN or infinite").figures["not finite"] == 1
    assert titled(found, "cannot be used as they are").level == "problem"


def test_a_table_with_ids_and_gaps(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    rows = ["id,age,town,code"] + [f"p{i},{20 + i % 50},{'' if i % 3 else 'Rome'},0{i % 9}" for i in range(120)]
    (tmp_path / "people.csv").write_text("\n".join(rows))
    found = examine_data(tmp_path / "people.csv")
    types = {"id": "text (words)", "age": "number (whole numbers)", "town": "text (words)"}
    codes = {"code": "text (digits after a 0 or a plus, which codes have)"}
    assert titled(found, "types follow from all their values").figures == codes | types
    numbers = examine_data(tmp_path / "people.csv", "--numeric", "code", "--missing", "Rome")
    types |= {"code": "number (whole numbers)", "town": "text (no values)"}
    assert titled(numbers, "types follow from all their values").figures == types
    assert titled(found, "another value in each row").advice == "--drop id"
    assert titled(found, "misses most").figures["most in"] == "town"
    assert titled(found, "would train").figures["network"] == "resmlp"  # the column id was left out


def test_cells_that_are_logarithms(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    counts = np.random.default_rng(0).poisson(2.0, (80, 12)).astype(np.float32)
    counts[:, 0] = 0
    anndata.AnnData(counts).write_h5ad(tmp_path / "raw.h5ad")
    anndata.AnnData(np.log1p(counts)).write_h5ad(tmp_path / "log.h5ad")
    raw, log = examine_data(tmp_path / "raw.h5ad"), examine_data(tmp_path / "log.h5ad")
    assert titled(raw, "raw counts").figures["highest"] == float(counts.max())
    assert titled(raw, "found in no cell").figures["never found"] == 1
    assert "--no-log1p" in titled(log, "logarithms already").advice


def test_sequences_of_very_different_lengths(tmp_path: Path) -> None:
    lengths = np.full(60, 4)
    lengths[0] = 40
    values = np.random.default_rng(0).normal(size=(60, 40, 2))
    np.savez(tmp_path / "walks.npz", values=values, lengths=lengths)
    found = examine_data(tmp_path / "walks.npz")
    spread = titled(found, "far longer") if any("far longer" in x.title for x in found) else None
    # The one long sequence may be among those held out, which training never sees.
    assert spread is None or spread.figures["longest"] == 40
    assert titled(found, "would train").figures["network"] == "transformer"


def test_a_preset_is_judged_with_its_flags() -> None:
    found = examine_words(["moons", "--batch-size", "64"], look=50)
    assert titled(found, "samples enough").figures["looked at"] == 50
    assert titled(found, "fits the memory").figures["batch size"] == 64


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        examine_data(tmp_path / "nothing")
    with pytest.raises(UserError, match="is a folder without data that is known here; it may hold png"):
        examine_data(tmp_path)
    with pytest.raises(UserError, match="add --data-dir"):
        examine_words(["celeba64"])
    with pytest.raises(UserError, match="look must be at least 2"):
        examine_words(["moons"], look=1)


def test_columns_far_from_zero(tmp_path: Path) -> None:
    x = np.c_[1.7e9 + np.random.default_rng(0).uniform(0, 3600, 600), np.random.default_rng(1).normal(size=600)]
    np.save(tmp_path / "unix.npy", x)
    assert titled(examine_data(tmp_path / "unix.npy"), "far from zero").level == "note"
    np.save(tmp_path / "cut.npy", x.astype(np.float32))
    assert titled(examine_data(tmp_path / "cut.npy"), "cut to float32").level == "problem"
