"""Samples as files that other programs read, in the format of the data they were trained on."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError, optional_import
from advect.core.files import atomic_write
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import LENGTH, NULL, Batch, Category, Conditions, DataSpec, Quantity
from advect.data import Split
from advect.data.cells.write import count_noise, write_h5ad
from advect.data.sequences.dataset import steps_of
from advect.data.tables.dataset import frame_of, write_table
from advect.data.vectors import write_vectors
from advect.model.flow import Flow
from advect.model.initial_noise import without_padding
from advect.reporting.grid import picture, save_png
from advect.reporting.scatter import vector_plot
from advect.reporting.series import series_plot

HELD_OUT = 2000
"""Held-out samples that vectors are drawn over, at most."""


def held_out_batch(flow: Flow, held_out: Split) -> Batch | None:
    """The first held-out samples in data units, for :func:`draw`; None for images, or where there are none."""
    if flow.spec.kind == "image" or len(held_out) == 0:
        return None
    batch = held_out.fetch(np.arange(min(HELD_OUT, len(held_out))))
    cond = batch.cond or {}
    return Batch(without_padding(flow.transform.inverse(batch.x1), cond), cond)


def draw(flow: Flow, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
    """Draw samples x (n, *S) with their conditions (n, ...) beside held-out data, both in data units.

    Images are a grid. Vectors in up to two dimensions are a scatter plot over the data; in more, their first two
    principal components, beside the quantiles of each feature. Sequences are lines.
    """
    if flow.spec.kind == "sequence":
        names = tuple(flow.facts.get("channels", ()))
        if reference is None:
            return series_plot(x, conditions.get(LENGTH), names=names)
        real = (reference.cond or {}).get(LENGTH)
        return series_plot(x, conditions.get(LENGTH), reference.x1, real, names=names)
    behind = None if reference is None else reference.x1
    if flow.spec.kind == "image" or max(flow.data_shape[0], flow.spec.shape[0]) <= 2:
        return picture(x, flow.spec, flow.transform, behind)
    match flow.facts.get("kind"):
        case "table":  # a column has a unit of its own, or codes
            columns = flow.facts["transform"]["columns"]
            numbers = [i for i, column in enumerate(columns) if column["kind"] == "number"]
            names = [column["name"] for column in columns]
            return vector_plot(x, behind, names=names, features=numbers, embed=flow.transform.forward)
        case "cells":
            return vector_plot(x, behind, names=flow.facts["var"]["genes"])
    return vector_plot(x, behind)


GRID = 100
"""At most so many images are drawn in samples.png."""


def check_output(flow: Flow, *, individual: bool) -> None:
    """See, before anything is drawn, that samples of this flow can be written. Raises UserError where they cannot."""
    if individual and flow.spec.kind != "image":
        raise UserError(
            f"--save-individual writes images, and this flow makes {flow.facts.get('kind', flow.spec.kind)} data;"
            " leave it out"
        )
    if flow.facts.get("kind") == "cells":
        optional_import("anndata", "cells")
    if flow.facts.get("kind") == "table":
        optional_import("pandas", "tables")
    if flow.facts.get("kind") == "vectors" or flow.facts.get("suffix") == ".parquet":
        optional_import("pyarrow", "tables")


def write_samples(
    flow: Flow,
    x: Tensor,
    conditions: Conditions,
    folder: Path,
    *,
    individual: bool,
    first: int = 0,
    seed: int = 0,
) -> list[Path]:
    """Write samples x (n, *S), in data units, with their conditions (n, ...) into a folder, and return the files.

    First comes what is in the data's own format: samples.h5ad for cells, in counts or expression as trained;
    samples.csv for tables, or .parquet where that was read, with the columns, types and names of the data;
    samples.parquet for vectors of such a file, with the names of their columns; samples.npz for all else, and
    samples.csv for sequences, of one row a step, and for vectors. The archive of sequences holds ``values`` and
    ``lengths``, as ``data.Sequences`` reads them, any other ``x``, and each holds the conditions as the network takes
    them. samples.png is a picture, and with ``individual`` each image has a file of its own as well. Steps as CSV need
    pandas and are left out without it. Where samples have numbers, as cells, sequences and single images do, ``first``
    is that of the first one. Where x is what components say is expected of cells, the file and the picture have cells
    counted around it, by ``seed`` (:func:`~advect.data.count_noise`).

    Raises UserError where x does not fit the flow's facts, or a library is missing.
    """
    check_output(flow, individual=individual)
    kind = flow.facts.get("kind", flow.spec.kind)
    match kind:
        case "cells":
            files = [folder / "samples.h5ad"]
            if flow.facts.get("counted"):
                x = count_noise(x, flow.facts, CounterRng(stream_seed(seed, Stream.COUNTS), 0, len(x), start=first))
            write_h5ad(files[0], x, flow.facts, conditions=conditions, first=first)
        case "table":
            files = [folder / _table_name(flow)]
            write_table(files[0], frame_of(x, conditions, flow.facts))
        case "sequences" | "sequence":
            files = _write_sequences(flow, x, conditions, folder, first)
        case "vectors":
            files = [folder / "samples.parquet"]
            told = _columns(conditions, flow.spec).values()  # of one condition or none, which has its own name there
            others = dict(zip([flow.facts["label"]], told, strict=False))
            write_vectors(files[0], x.numpy(), column=flow.facts["column"], others=others)
        case _:
            files = [_write_npz(folder, {"x": x}, conditions)]
            if flow.spec.kind == "vector":
                files.append(folder / "samples.csv")
                atomic_write(files[-1], lambda path: _write_csv(path, x, _columns(conditions, flow.spec)))
    return files + _write_pictures(flow, x, conditions, folder, individual=individual, first=first)


def _table_name(flow: Flow) -> str:
    return "samples" + flow.facts.get("suffix", ".csv")


def _write_sequences(flow: Flow, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
    named = {name: value for name, value in conditions.items() if name != LENGTH}
    arrays = {"values": x, **({"lengths": conditions[LENGTH]} if LENGTH in conditions else {})}
    files = [_write_npz(folder, arrays, named)]
    if find_spec("pandas") is not None:
        channels = [f"value_{i}" for i in range(x.shape[2])]
        plain = {"channels": channels, "id": "id", "order": "step", "conditions": []}
        files.append(folder / "samples.csv")
        write_table(files[-1], steps_of(x, conditions, flow.facts or plain, first=first))
    return files


def _write_npz(folder: Path, arrays: dict[str, Tensor], conditions: Conditions) -> Path:
    """samples.npz, without pickle."""
    plain = {name: value.numpy() for name, value in {**arrays, **conditions}.items()}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    atomic_write(folder / "samples.npz", write)
    return folder / "samples.npz"


def _write_csv(path: Path, x: Tensor, columns: dict[str, list[Any]]) -> None:
    """A row for each of x (n, D): x1 to xD, then the columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*(f"x{i + 1}" for i in range(x.shape[1])), *columns])
        # A float32 has its shortest digits as numpy's own scalar only.
        rows.writerows([*map(str, row), *told] for row, *told in zip(x.numpy(), *columns.values(), strict=True))


def _columns(conditions: Conditions, spec: DataSpec) -> dict[str, list[Any]]:
    """Conditions as a person reads them: names, and numbers in their own units; empty where not given."""
    columns: dict[str, list[Any]] = {}
    for name, value in conditions.items():
        kind = spec.conditions[name]
        if isinstance(kind, Category):
            columns[name] = ["" if i == NULL else kind.names[i] for i in value.tolist()]
        elif isinstance(kind, Quantity):
            own = value.double() * value.new_tensor(kind.std).double() + value.new_tensor(kind.mean).double()
            for i, entry in enumerate(kind.names):
                title = name if len(kind.names) == 1 else f"{name}.{entry}"
                columns[title] = ["" if v != v else v for v in own[:, i].tolist()]
        else:
            columns[name] = value.tolist()
    return columns


def _write_pictures(
    flow: Flow, x: Tensor, conditions: Conditions, folder: Path, *, individual: bool, first: int
) -> list[Path]:
    shown = GRID if flow.spec.kind == "image" else len(x)
    files = [folder / "samples.png"]
    save_png(draw(flow, x[:shown], {name: value[:shown] for name, value in conditions.items()}), files[0])
    for i in range(len(x) if individual else 0):
        files.append(folder / f"sample-{first + i:06d}.png")
        save_png(draw(flow, x[i : i + 1], {}), files[-1])
    return files
