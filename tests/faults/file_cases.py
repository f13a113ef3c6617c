"""Files for the breaker: a small sound one of everything that is read, each of which is damaged in turn.

Formats of data come from the registry, each with the files of ``contracts.data_files``; files of a run folder from
what a run writes. ``build`` makes them all in one folder, of which each case has a copy.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from advect.cli import run
from advect.config.presets import PRESETS
from advect.core import registry
from contracts import data_files
from faults.damage import KINDS
from faults.flag_cases import TINY, flag, flags_of, sections_of

SAMPLE = "sample PLACE --num-samples 20 --num-steps 2 --device cpu --output-dir out"
IMPUTE = "masked given.csv --draws 2 --num-steps 2 --device cpu --output-dir out"
FORECAST = "series series.csv --horizon 2 --draws 3 --num-steps 2 --device cpu --output-dir out"
EVAL = "eval PLACE --num-samples 20 --num-steps 1 --metrics energy --device cpu --output out/eval.json"
RESUME = "train moons --width 8 --depth 2 --batch-size 64 --max-steps 5 --resume auto --run-dir PLACE"
READERS = {
    "run": (
        *(SAMPLE, EVAL, "report PLACE --no-measure --output-dir out", "doctor PLACE", "doctor PLACE --samples 20"),
        *("train --resume-from PLACE --max-steps 5", RESUME),
        "ema PLACE --length 0.1 --output out/average.safetensors",
        "report PLACE --num-samples 20 --nfes 2 --device cpu --output-dir out",
    ),
    "series": (f"forecast {FORECAST}".replace("series ", "PLACE "),),
    "series.csv": (f"forecast {FORECAST}".replace("series.csv", "PLACE"),),
    "masked": (f"impute {IMPUTE}".replace("masked", "PLACE"),),
    "given.csv": (
        f"impute {IMPUTE}".replace("given.csv", "PLACE"),
        f"sample {IMPUTE.replace('given.csv', '--given PLACE')}",
    ),
    "run/checkpoints": (
        "load run",
        "load run no",
        "load run/checkpoints/step-00000002",
        SAMPLE.replace("PLACE", "run"),
    ),
    "pack": ("data verify PLACE", "train --data PLACE --dry-run", "doctor --data PLACE"),
    "average.safetensors": (SAMPLE, "load PLACE"),
    "weights.safetensors": (SAMPLE, "train moons --width 8 --depth 2 --max-steps 2 --init-from PLACE --run-dir out"),
    "one.json": ("eval --compare PLACE two.json",),
    "config.yaml": ("train --config PLACE --max-steps 2 --run-dir out", "train --config PLACE --dry-run"),
    "images": ("data pack PLACE --image-size 8 --output out",),
    "images.zip": ("data pack PLACE --image-size 8 --output out", "train --data PLACE --image-size 8 --dry-run"),
    "table.csv.gz": ("doctor --data PLACE", "train --data PLACE --dry-run"),
    "table.tsv": ("doctor --data PLACE", "train --data PLACE --dry-run"),
    "table.parquet": ("doctor --data PLACE", "train --data PLACE --dry-run"),
}
"""Commands that read each file or folder of :func:`build`; those of formats follow from :func:`formats`."""


def build(home: Path) -> None:
    """Make the sound files in ``home``, which is the current folder."""
    words = "train moons --width 8 --depth 2 --batch-size 64 --max-steps 4 --save-every 2 --log-every 1 --threads 1"
    run([*words.split(), "--sample-every=0", "--posthoc-ema", "--posthoc-every=1", "--run-dir=run", "--device=cpu"])
    masked = words.replace("moons", "moons --mask random").replace(" --save-every 2", "")
    run([*masked.split(), "--sample-every=0", "--run-dir=masked", "--device=cpu"])
    (home / "given.csv").write_text("x1,x2\n0.5,\n,-0.25\n1,0\n,\n")
    rows = "".join(f"{i // 9},{i % 9},{i % 7 / 4}\n" for i in range(90))
    (home / "series.csv").write_text(f"who,step,value\n{rows}")
    words = "train sequences --data-dir series.csv --id-column who --order-column step --mask prefix --max-steps 2"
    words += " --width 8 --depth 1 --heads 2 --batch-size 8 --sample-every 0 --threads 1 --run-dir series --device cpu"
    run(words.split())
    for name in ("one", "two"):
        run(EVAL.replace("PLACE", "run").replace("out/eval", name).split())
    run(SAMPLE.replace("PLACE", "run").replace(" out", " run/generated/seed-0").split())
    run(["ema", "run", "--length", "0.1", "--output", "average.safetensors"])
    run(["report", "run", "--no-measure"])
    shutil.copy(home / "run/checkpoints/step-00000004/model.safetensors", home / "weights.safetensors")
    text = (home / "run/config.yaml").read_text().replace("max_steps: 4", "max_steps: 2")
    (home / "config.yaml").write_text(text)
    rng = np.random.default_rng(0)
    (home / "images").mkdir()
    for i in range(6):
        pixels = Image.fromarray(rng.integers(0, 256, (9, 10, 3), dtype=np.uint8))
        pixels.save(home / f"images/{i}.{('png', 'jpg')[i % 2]}")
    shutil.make_archive(str(home / "images"), "zip", home / "images")
    run(["data", "pack", "images", "--image-size", "8", "--output", "pack"])
    _tables(home, rng)
    found = {}
    for name in registry.choices("data-format"):
        make = getattr(data_files, name.replace("-", "_"), None)
        if make is None or getattr(registry.get("data-format", name), "place", None) is None:
            continue
        folder = home / "data" / name
        folder.mkdir(parents=True)
        make(folder)
        found[name] = str(_place(name, folder).relative_to(home))
    (home / "formats.json").write_text(
        json.dumps({name: [place, _tiny(name, place)] for name, place in found.items()})
    )


def _tables(home: Path, rng: np.random.Generator) -> None:
    import gzip

    import pandas as pd

    rows = "".join(f"{rng.normal()},{i},{'ab'[i % 2]},{'' if i % 5 else 3}\n" for i in range(60))
    (home / "table.csv").write_text(f"x,n,kind,gap\n{rows}")
    (home / "table.csv.gz").write_bytes(gzip.compress((home / "table.csv").read_bytes()))
    (home / "table.tsv").write_text((home / "table.csv").read_text().replace(",", "\t"))
    pd.read_csv(home / "table.csv").to_parquet(home / "table.parquet")


def _place(name: str, folder: Path) -> Path:
    """What ``--data`` names: the folder, or the file in it that is recognised."""
    from advect.config.arguments import describe
    from advect.core.errors import UserError

    for place in (*sorted(p for p in folder.iterdir() if p.is_file()), folder, *sorted(folder.iterdir())):
        try:
            describe(place, data_format=name)
            return place
        except UserError:
            continue
    return folder


def _preset(name: str) -> str:
    """The preset of a format's own name, with a space, which some formats need."""
    return f"{name} " if name in PRESETS else ""


def _tiny(name: str, place: str) -> str:
    """Flags that keep a training on a format small."""
    known = {
        one.name
        for s in sections_of(f"train {_preset(name)}--data {place} --data-format {name}").values()
        for one in _plain(s)
    }
    small = {key: value for key, value in TINY.items() if key in known and key != "depth"}
    sized = {key: "8" for key in ("image_size",) if key in known}
    return " ".join(f"{flag(key)} {value}" for key, value in (small | sized).items())


def _plain(section):
    """Flags that need no part, or the one that the section has chosen."""
    return (one for one in flags_of(section) if one.part is None or getattr(section, one.part[0], None) == one.part[1])


@cache
def readers(home: Path) -> dict[str, tuple[str, ...]]:
    """Commands by the file or folder that they read."""
    found = dict(READERS)
    for name, (place, tiny) in json.loads((home / "formats.json").read_text()).items():
        train = f"train {_preset(name)}--data PLACE --data-format {name}"
        sized = tiny.replace("--run-dir out", "").replace("--device cpu", "")
        doctor = f"{train.replace('train', 'doctor', 1)} {sized}"
        found[place] = (doctor, f"{train} {sized} --dry-run", f"{train} {tiny}")
    return found


@cache
def files(home: Path, place: str) -> tuple[str, ...]:
    """Files to damage of a place."""
    whole = home / place
    if whole.is_file():
        return (place,)
    return tuple(str(p.relative_to(home)) for p in sorted(whole.rglob("*")) if p.is_file() and p.name != ".lock")


@st.composite
def damaged_files(draw: st.DrawFn, home: Path, place: str | None = None) -> tuple[str, list[str], str, str, int]:
    """A place, the words of a command that reads it, the file of it to damage, the damage and its seed."""
    known = readers(home)
    place = draw(st.sampled_from(sorted(known))) if place is None else place
    words = draw(st.sampled_from(known[place])).replace("PLACE", place).split()
    file = draw(st.sampled_from(files(home, place)))
    return place, words, file, draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**32 - 1))
