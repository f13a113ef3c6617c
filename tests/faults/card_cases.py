"""Model cards for the breaker: sound weight files of every modality, of whose card one value at a time is another.

A flow of such a card is either sound, draws finite samples and writes them, or is refused by one sentence. As a
program: ``python -m faults.card_cases --cases 600 [--only NAME] [--seed 0] [--every]``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import advect
from advect.checkpoint.tensor_files import save_tensors
from advect.config.build import build_network, fit_source
from advect.config.presets import PRESETS
from advect.core.errors import UserError
from advect.data.base import Dataset
from advect.model.load import METADATA, ModelMetadata
from advect.training.state import DATA

ROWS = 60
MEMORY = 2 * 10**9
"""Bytes more than before that a case may take."""


def _of_frame(**options: Any) -> Callable[[Path], Dataset]:
    """Table of columns of all kinds, from a file."""
    suffix = options.pop("suffix")

    def make(home: Path) -> Dataset:
        import pandas as pd

        from advect.data.tables.dataset import Table

        i = np.arange(ROWS)
        frame = pd.DataFrame(
            {
                "real": np.sin(i) * 3,
                "whole": i % 7,
                "twice": 2 * (i % 7),
                "kind": np.array(["a", "b", "=c"])[i % 3],
                "two": np.array(["x", "y"])[i % 2],
                "group": np.array(["g", "h", "k"])[i % 3],
                "amount": [f"{v * 1000:,.2f}" for v in i + 1.5] if suffix == ".csv" else i * 1e3,
                "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(i * 3, unit="D"),
                "at": pd.Timestamp("2020-01-01", tz="Europe/Rome") + pd.to_timedelta(i * 7, unit="h"),
                "gap": np.where(i % 5, i / 4, np.nan),
                "one": 4,
                "flag": i % 2 == 0,
            }
        )
        if suffix == ".csv":
            frame["euro"] = [f"{v / 8:.2f}".replace(".", ",") for v in i]
            frame["small"] = [f"{v + 1.25:.2e}" for v in i]
            frame["d"] = [f"{1 + v % 28}/{1 + v % 12}/20{10 + v % 9}" for v in i]
            frame.to_csv(home / "t.csv", index=False, sep=options.get("sep", ","))
        else:
            frame["level"] = pd.Categorical(frame["kind"], ["a", "b", "=c", "unused"], ordered=True)
            frame["id"] = pd.array(2**60 + i * 12345, dtype="Int64")
            frame["decimal"] = pd.array(i, dtype="int64").astype("float64") / 4
            frame["date"] = frame["day"].dt.date
            frame["narrow"] = (i % 9).astype(np.int8)
            frame["half"] = (i / 2).astype(np.float32)
            frame.set_index("id").to_parquet(home / "t.parquet")
        own = {key: value for key, value in options.items() if key != "sep"}
        return Table(home / f"t{suffix}", **own)

    return make


RULED = ("twice == whole + whole", "group == f(kind)", "0 <= whole <= 6")
LABELS = ("two", "gap", "day")


def _vectors(home: Path) -> Dataset:
    from advect.data.arrays import Arrays

    return Arrays(np.random.default_rng(0).normal(size=(ROWS, 3)), conditions={"label": np.arange(ROWS) % 3})


def _whole_vectors(home: Path) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from advect.data.array_files import ArrayFile

    rows = np.random.default_rng(0).integers(0, 200, (ROWS, 3))
    table = {"v": pa.array(list(rows.astype(np.uint8))), "label": [f"{i % 2}" for i in range(ROWS)]}
    pq.write_table(pa.table(table), home / "v.parquet")
    return ArrayFile(home / "v.parquet")


def _images(home: Path) -> Dataset:
    from advect.data.arrays import Arrays

    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 8, 8)).astype(np.uint8)
    return Arrays(pixels, conditions={"label": np.arange(ROWS) % 3}, names={"label": ("cat", "dog", "eel")})


def _cells(**options: Any) -> Callable[[Path], Dataset]:
    def make(home: Path) -> Dataset:
        import anndata
        import pandas as pd

        from advect.data.cells.dataset import Cells

        rng, i = np.random.default_rng(0), np.arange(90)
        obs = {"type": np.array(["a", "b", "c"])[i % 3], "age": i * 1.0, "plate": i // 30, "treated": i % 2 == 0}
        var = {"chromosome": pd.Categorical(np.array(["1", "X"])[np.arange(8) % 2]), "length": np.arange(8) * 10}
        genes = [f"G{j}" for j in range(8)]
        counts = rng.poisson(5, (90, 8)).astype(np.float32)
        cells = anndata.AnnData(
            counts, pd.DataFrame(obs, index=i.astype(str)), pd.DataFrame(var, index=pd.Index(genes))
        )
        cells.write_h5ad(home / "cells.h5ad")
        return Cells(home / "cells.h5ad", **options)

    return make


def _steps(home: Path) -> Dataset:
    import pandas as pd

    from advect.data.sequences.dataset import Sequences

    i = np.arange(90)
    at = pd.Timestamp("2021-03-01") + pd.to_timedelta(i * 5 + i % 3, unit="h")
    frame = pd.DataFrame(
        {"who": [f"p{k // 9:03d}" for k in i], "at": at, "value": i % 7 / 4, "mood": np.array(["u", "v"])[i % 2]}
    )
    frame["arm"] = np.array(["one", "other"])[(i // 9) % 2]
    frame.to_csv(home / "s.csv", index=False, sep=";")
    return Sequences(home / "s.csv", id_column="who", order_column="at", conditions=["arm"])


def _series(home: Path) -> Dataset:
    from advect.data.sequences.dataset import Sequences

    rng = np.random.default_rng(0)
    return Sequences([rng.normal(size=(4 + k % 3, 2)) for k in range(ROWS)])


def _lines(home: Path) -> Dataset:
    from advect.data.tokens.dataset import Tokens

    return Tokens(["ab ca"[: 2 + k % 3] + "abc"[k % 3] for k in range(ROWS)])


def _codes(home: Path) -> Dataset:
    from advect.data.tokens.dataset import Tokens

    return Tokens(np.random.default_rng(0).integers(0, 4, (ROWS, 6)), labels={"kind": np.arange(ROWS) % 2})


def _texts(home: Path) -> Dataset:
    from advect.data.tokens.dataset import Tokens

    rows = "".join(f"{'ab ca'[: 2 + k % 3]},{'uv'[k % 2]},{k / 4}\n" for k in range(ROWS))
    (home / "t.csv").write_text("text,kind,size\n" + rows)
    return Tokens(home / "t.csv", column="text", unit="words", conditions=["kind", "size"])


SOURCES: dict[str, tuple[str, Callable[[Path], Dataset]]] = {
    "images": ("unet", _images),
    "vectors": ("mlp", _vectors),
    "vectors-parquet": ("mlp", _whole_vectors),
    "table-csv": (
        "mlp",
        _of_frame(suffix=".csv", conditions=LABELS, continuous_conditions=("gap",), rule=RULED),
    ),
    "table-semicolon": ("mlp", _of_frame(suffix=".csv", sep=";", scaling="standard")),
    "table-parquet": (
        "mlp",
        _of_frame(suffix=".parquet", conditions=("two", "date")),
    ),
    "cells-genes": ("mlp", _cells(conditions=("type", "plate"), continuous=("age",))),
    "cells-counts": ("mlp", _cells(space="counts", conditions=("treated",))),
    "cells-pca": ("mlp", _cells(pca=3, conditions=("type",))),
    "sequences-table": ("transformer", _steps),
    "sequences-arrays": ("transformer", _series),
    "tokens-text": ("transformer", _lines),
    "tokens-numbers": ("transformer", _codes),
    "tokens-table": ("transformer", _texts),
}
"""Network and data of each sound card."""

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 8, "depth": 2},
    "unet": {"model_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()},
    "transformer": {"width": 8, "depth": 1, "heads": 2},
}


def build(name: str, home: Path) -> Path:
    """Weight file of a flow, not trained, of one of ``SOURCES``, as the first checkpoint of a run would hold it."""
    network, make = SOURCES[name]
    (home / name).mkdir(parents=True)
    data = make(home / name)
    config = PRESETS["tokens" if data.modality.tokens else "arrays"].build()
    config = replace(config, network=config.network.replaced(network=network, **SMALL[network]))
    metadata = ModelMetadata.from_run(config, "arrays", data, fit_source(config.method, data))
    net = build_network(config.network, data.spec, **metadata.method.form)
    file = home / name / "checkpoint" / "model.safetensors"
    (file.parent / DATA).parent.mkdir(parents=True)
    save_tensors(file, net.state_dict(), {METADATA: metadata.to_text()})
    if metadata.tensors:
        save_tensors(file.parent / DATA, metadata.tensors)
    return file


HUGE: tuple[Any, ...] = (2**31, 2**63, 10**30, 1e300, 1.7e308, -1e300, float("nan"), float("inf"))
OTHERS: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "\u202e\x1b[1m",
    [],
    {},
    [[]],
    [1.5, "x"],
    {"": 0},
    0,
    -1,
    1,
    0.5,
    1e-320,
)


def places(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to the values of a card; of a list's values only the first two and the last."""
    if isinstance(tree, dict):
        for key in tree:
            yield (*way, key)
            yield from places(tree[key], (*way, key))
    elif isinstance(tree, list):
        for i in sorted({0, 1, len(tree) - 1} & set(range(len(tree)))):
            yield (*way, i)
            yield from places(tree[i], (*way, i))


def at(tree: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        tree = tree[key]
    return tree


def mutated(card: Any, rng: random.Random, way: tuple[Any, ...] | None = None) -> tuple[Any, str]:
    """Card with one value that is another, and words for it."""
    card = deepcopy(card)
    chosen = rng.choice(list(places(card))) if way is None else way
    inside, key = at(card, chosen[:-1]), chosen[-1]
    old, how = inside[key], rng.randrange(10)
    if how < 3:
        new = rng.choice(OTHERS)
    elif how < 5:
        new = rng.choice(HUGE)
    elif how == 5 and isinstance(old, int | float):
        new = rng.choice((-old, old + 1, old - 1, old * 10, old / 2, str(old)))
    elif how == 6 and isinstance(old, list):
        new = rng.choice((old[:-1], [*old, *old[-1:]], old[::-1], [], [old], old * 2))
    elif how == 7 and isinstance(inside, dict):
        del inside[key]
        return card, f"without {_words(chosen)}"
    elif how == 8 and isinstance(inside, dict):
        inside[rng.choice(("new", "", "__class__", f"{key}x"))] = rng.choice((0, "x", [], old))
        return card, f"more beside {_words(chosen)}"
    elif how == 9 and isinstance(inside, dict) and len(inside) > 1:
        other = rng.choice([name for name in inside if name != key])
        inside[key], inside[other] = inside[other], inside[key]
        return card, f"{_words(chosen)} and {other!r} in each other's place"
    else:
        new = f"{old}x" if isinstance(old, str) else [old]
    inside[key] = new
    return card, f"{_words(chosen)} = {json.dumps(new)[:60]} for {json.dumps(old)[:60]}"


def _words(way: tuple[Any, ...]) -> str:
    return ".".join(map(str, way))


def try_card(file: Path, out: Path, *, plots: bool) -> str:
    """Load a weight file, draw two samples and write them: "held" or the sentence. Raises whatever else comes."""
    out.mkdir(exist_ok=True)
    try:
        flow = advect.load(file, device="cpu")
        flow.modality.check_output()
        samples = flow.sample(2, steps=1)
        if plots:
            files = flow.modality.write(samples.x, samples.encoded, out)
        else:
            files = flow.modality.write_data(flow.modality.counted(samples.x), samples.encoded, out, 0)
    except UserError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 3000, f"not a sentence: {error}"
        return str(error)
    assert samples.x.isfinite().all() or samples.x.dtype == torch.float64, "samples are not finite"
    assert files and all(one.stat().st_size for one in files)
    return "held"


class Cards:
    """Sound weight files in ``home``, made when asked for, and cases of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._files: dict[str, tuple[Path, Any, dict[str, torch.Tensor]]] = {}

    def sound(self, name: str) -> tuple[Path, Any, dict[str, torch.Tensor]]:
        """Weight file, card and tensors."""
        if name not in self._files:
            file = build(name, self.home)
            with safe_open(file, framework="pt") as content:
                card = json.loads(content.metadata()[METADATA])
                tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            self._files[name] = file, card, tensors
        return self._files[name]

    def case(self, name: str, seed: int, way: tuple[Any, ...] | None = None) -> tuple[str, str]:
        """The change of the card of one case, and what came of it; "broke" begins the latter for what may not be."""
        file, card, tensors = self.sound(name)
        rng = random.Random(f"{name} {seed} {way}")
        changed, words = mutated(card, rng, way)
        place = file.with_name("changed.safetensors")
        save_file(tensors, place, {METADATA: json.dumps(changed)})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            found = try_card(place, self.home / "out", plots=rng.random() < 0.1)
        except Exception:
            return words, f"broke: {traceback.format_exc()}"
        taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        return words, f"broke: it took {taken:,} bytes" if taken > MEMORY else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(SOURCES), action="append")
    parser.add_argument("--every", action="store_true", help="each place of the card once, and no more")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cards, broken, total = Cards(Path(folder)), 0, 0
        soft = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 20 * 10**9
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        for name in args.only or SOURCES:
            file, card, _ = cards.sound(name)
            assert (found := try_card(file, cards.home / "out", plots=True)) == "held", (name, found)
            ways = list(places(card)) if args.every else [None] * args.cases
            held = broke = 0
            for seed, way in enumerate(ways, args.seed):
                words, found = cards.case(name, seed, way)
                held += found == "held"
                if found.startswith("broke"):
                    broke += 1
                    print(f"{name} {seed}: {words}\n{found}", flush=True)
            print(
                f"{name}: {len(ways)} tried, {held} held, {len(ways) - held - broke} refused, {broke} broke",
                flush=True,
            )
            broken, total = broken + broke, total + len(ways)
    print(f"{total} tried, {broken} broke")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
