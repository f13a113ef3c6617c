"""Statistics of a data set as seen in training, and checks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advect.config.plan import rare_values
from advect.core.registry import name_of
from advect.core.types import LENGTH, NULL, Category, Conditions
from advect.data import Dataset, Split
from advect.data.copies import Copies
from advect.data.modality import Modality
from advect.data.repeats import evenly_spaced
from advect.doctor.report import Figure, Finding, Level, Share

FEW, FEW_HELD_OUT, FEW_OF_A_CLASS = 500, 50, 20


@dataclass(frozen=True, kw_only=True)
class ValueStats:
    """Statistics of ``looked`` training samples.

    Attributes:
        train, held_out: samples in each split.
        modality, shape: of one sample.
        low, high: range in data units.
        mean, deviation, extreme: mean, standard deviation and largest absolute value in model units.
        constant, features: number of constant features, and of all.
        infinite: samples with infinite values, or NaN that are no holes.
        holes: words on the holes of the whole data set; "" without any.
        offset: largest ratio of a feature's distance from zero to its deviation.
        farthest: that feature.
        coarse: features whose values all lie on float32's grid, though that is coarse beside their deviation.
    """

    train: int
    held_out: int
    looked: int
    modality: type[Modality]
    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    deviation: float
    extreme: float
    constant: int = 0
    features: int = 1
    infinite: int = 0
    holes: str = ""
    offset: float = 0.0
    farthest: int = 0
    coarse: int = 0


@dataclass(frozen=True, kw_only=True)
class ClassShares:
    """Shares of a categorical condition's values in ``train`` samples, and their numbers of held-out samples, if all
    of these were looked at.
    """

    name: str
    shares: dict[str, float]
    train: int
    held_out: dict[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageStats:
    """Statistics of ``looked`` image files of ``total``.

    Attributes:
        unreadable: files that cannot be decoded, with the reasons.
        left_out: numbers of files that are no pictures, by suffix.
        asked: height and width for training, in pixels.
        smaller, least: files with a shorter side than asked; the shortest side of all, in pixels.
        grey, channels: files without colour; channels for training.
    """

    looked: int
    total: int
    unreadable: dict[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    asked: tuple[int, int]
    smaller: int = 0
    least: int
    grey: int = 0
    channels: int = 3


def measure_values(dataset: Dataset, look: int) -> ValueStats:
    """Statistics of at most ``look`` training samples. Raises UserError if one is unreadable."""
    x, cond = _fetch(dataset.train, evenly_spaced(len(dataset.train), look))
    real = _real_values(x, cond)
    data = dataset.transform.inverse(x)
    flat = x.flatten(1)
    known = flat if dataset.holes is None else torch.where(flat.isnan(), 0.0, flat)
    infinite = ~torch.isfinite(known).all(1)
    fine = real[torch.isfinite(real)].double()
    shown = data[torch.isfinite(data)]
    offset, farthest, coarse = _offsets(dataset.transform.inverse(x[torch.isfinite(flat).all(1)]), cond)
    return ValueStats(
        train=len(dataset.train),
        held_out=len(dataset.held_out),
        looked=len(x),
        modality=type(dataset.modality),
        shape=tuple(dataset.spec.shape),
        low=float(shown.min()) if len(shown) else 0.0,
        high=float(shown.max()) if len(shown) else 0.0,
        mean=float(fine.mean()) if len(fine) else 0.0,
        deviation=float(fine.std(correction=0)) if len(fine) else 0.0,
        extreme=float(fine.abs().max()) if len(fine) else 0.0,
        constant=int((_least(flat) == -_least(-flat)).sum()) if len(x) > 1 else 0,
        features=flat.shape[1],
        infinite=int(infinite.sum()),
        holes="" if dataset.holes is None else dataset.holes.words(),
        offset=offset,
        farthest=farthest,
        coarse=coarse,
    )


def _least(x: Tensor) -> Tensor:
    """Least value (K,) of each feature of x (N, K), holes apart."""
    return torch.where(x.isnan(), torch.inf, x).amin(0)


def _offsets(data: Tensor, cond: Conditions) -> tuple[float, int, int]:
    """``offset``, ``farthest`` and ``coarse`` of :class:`ValueStats` for data (N, *S) in data units."""
    if LENGTH in cond or data.ndim > 3 or len(data) < 2:
        return 0.0, 0, 0
    x = data.double().reshape(-1, data.shape[-1])  # the channels of sequences
    mean, std = x.mean(0), x.std(0, correction=0)
    ratio = torch.where(std > 0, mean.abs() / std, 0.0).nan_to_num(0.0)
    grid = 2.0 ** (x.abs().amax(0).clamp(min=1e-300).log2().floor() - 23)
    steps = x / grid
    # Model units, of which these data were made, keep 2^-24 of a deviation.
    places = steps.round()
    on_grid = ((steps - places).abs() < 0.05).all(0) & (std < 2**20 * grid) & (places != places[0]).any(0)
    return float(ratio.max()), int(ratio.argmax()), int((on_grid & (std > 0) & (std < 2**9 * grid)).sum())


def class_shares(dataset: Dataset, look: int) -> list[ClassShares]:
    """Class shares of each categorical condition."""
    n, kinds = len(dataset.held_out), {k: c for k, c in dataset.spec.conditions.items() if isinstance(c, Category)}
    seen = _fetch(dataset.held_out, np.arange(n))[1] if kinds and 0 < n <= look else {}
    found = []
    for name, c in kinds.items():
        codes = seen[name][seen[name] != NULL] if name in seen else None
        counts = (
            None if codes is None else dict(zip(c.names, codes.bincount(minlength=len(c.names)).tolist(), strict=True))
        )
        shares = dict(zip(c.names, c.frequencies, strict=True))
        found.append(ClassShares(name=name, shares=shares, train=len(dataset.train), held_out=counts))
    return found


def measure_images(dataset: Dataset, look: int) -> ImageStats | None:
    """Statistics of at most ``look`` image files of both splits; None for other data."""
    split, rest = dataset.train.files, dataset.held_out.files
    if split is None:
        return None
    both = np.concatenate([split.rows, split.rows[:0] if rest is None else rest.rows])
    chosen = both[evenly_spaced(len(both), look)]
    unreadable = split.at(chosen).find_unreadable()
    channels, height, width = split.decoder.shape
    smaller, grey, sides = 0, 0, []
    for row in chosen.tolist():
        if split.store.title(row) in unreadable:
            continue
        try:
            content = split.store.read(row)
            with Image.open(io.BytesIO(content)) as image:
                size = image.size
        except Exception:  # a decoder may raise anything on a damaged file, which is already counted
            continue
        sides.append(min(size))
        smaller += min(size) < min(height, width)
        pixels = split.decoder(content)[:3]
        grey += channels > 1 and bool((pixels == pixels[:1]).all())
    return ImageStats(
        looked=len(chosen),
        total=len(both),
        unreadable=unreadable,
        left_out=split.store.left_out,
        asked=(height, width),
        smaller=smaller,
        least=min(sides, default=0),
        grey=grey,
        channels=channels,
    )


def _fetch(split: Split, chosen: np.ndarray) -> tuple[Tensor, Conditions]:
    batches = [split.fetch(chosen[i : i + 256]) for i in range(0, len(chosen), 256)]
    names = batches[0].cond or {}
    cond = {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in names}
    return torch.cat([b.x1 for b in batches]).float(), cond


def _real_values(x: Tensor, cond: Conditions) -> Tensor:
    """Values of x (N, *S) without padding."""
    if LENGTH not in cond or (cond[LENGTH] == NULL).any():
        return x.flatten()
    real = torch.arange(x.shape[1]) < cond[LENGTH][:, None]
    return x[real].flatten()


def check_count(v: ValueStats) -> Finding:
    """Check the number of samples."""
    figures: dict[str, Figure] = {
        "training samples": v.train,
        "held out": v.held_out,
        "shape": "x".join(map(str, v.shape)),
        "kind": name_of(v.modality),
        "looked at": v.looked,
    } | ({"with": v.holes} if v.holes else {})
    if v.train < FEW:
        return Finding(
            "note",
            "There are few samples, which a network soon knows by heart",
            figures,
            "more data; a smaller network with more --dropout; the plan says whether the held-out loss ends training",
        )
    return Finding("ok", "There are samples enough to train on", figures)


def check_held_out(v: ValueStats) -> Finding | None:
    """Check the number of held-out samples."""
    if v.held_out >= FEW_HELD_OUT:
        return None
    figures: dict[str, Figure] = {"held out": v.held_out, "training samples": v.train}
    title = "Too little is held out to measure with: over-fitting would not be seen"
    return Finding("note", title, figures, "a larger share held out, such as --held-out 0.2, or more data")


def check_infinite(v: ValueStats) -> Finding | None:
    """Check for NaN and infinite values."""
    if not v.infinite:
        return None
    figures: dict[str, Figure] = {"samples with them": v.infinite, "looked at": v.looked}
    return Finding("problem", "The data have NaN or infinite values", figures, "remove those samples or fill them in")


def check_range(v: ValueStats) -> Finding:
    """Check the scale of the values in model units."""
    figures: dict[str, Figure] = {
        "from": v.low,
        "to": v.high,
        "deviation in model units": v.deviation,
        "mean": round(v.mean, 4),
        "largest in model units": v.extreme,
    }
    if v.low == v.high:
        return Finding("problem", "All values of the data are equal", figures, "other data: there is nothing to learn")
    found = v.modality.check_range(mean=v.mean, std=v.deviation, extreme=v.extreme)
    return Finding(found.level, found.title, figures, found.fix)


def check_offset(v: ValueStats) -> Finding | None:
    """Check for features whose distance from zero leaves float32 few digits for their spread."""
    if v.offset < 2**14:
        return None
    figures: dict[str, Figure] = {"feature": v.farthest, "distance from zero in deviations": v.offset}
    if v.coarse:
        title = "Values were cut to float32 before they came here: their grid is coarse beside their spread"
        return Finding("problem", title, figures | {"such features": v.coarse}, "write the data anew as float64")
    title = "Some features lie so far from zero that float32 cannot hold them"
    advice = "none for training, which centres them in float64; samples are float64: keep that type"
    return Finding("note", title, figures, advice)


def check_constant(v: ValueStats) -> Finding | None:
    """Check for constant features."""
    if not v.constant or v.low == v.high:
        return None
    found = v.modality.check_constant(v.constant / v.features)
    figures: dict[str, Figure] = {"constant": v.constant, "features": v.features, "looked at": v.looked}
    return Finding(found.level, found.title, figures, found.fix)


def check_copies(c: Copies) -> Finding:
    """Check for samples that come more than once."""
    share = len(c) / max(c.looked, 1)
    figures: dict[str, Figure] = {"copies": len(c), "samples compared": c.looked, "share": Share(share)}
    if not len(c):
        if c.equal <= len(c.otherwise):
            return Finding("ok", "No sample comes twice", {"samples compared": c.looked})
        title = "Some rows are equal, as rows of few or of usual values are: they are no copies"
        return Finding("ok", title, {"equal to another": c.equal - len(c.otherwise), "samples compared": c.looked})
    level: Level = "problem" if share > 0.5 else "note" if share > 0.01 else "ok"
    advice = f"--drop-copies leaves {'it' if len(c) == 1 else 'them'} out; --copies FILE writes the whole list"
    return Finding(level, "Some samples come more than once", figures | {"such as": c.examples()}, advice)


def check_conditions(c: Copies) -> Finding | None:
    """Check for equal samples with different conditions."""
    if not c.otherwise:
        return None
    figures: dict[str, Figure] = {"equal, but for conditions": len(c.otherwise), "such as": ", ".join(c.otherwise[:3])}
    title = "Some samples equal an earlier one but have other conditions"
    return Finding("note", title, figures, "see whether they are labelled wrongly; --drop-copies keeps them")


def check_dropped(c: Copies) -> Finding:
    """Tell the copies that --drop-copies leaves out."""
    figures: dict[str, Figure] = {"left out": len(c), "of": c.looked}
    figures |= {"such as": c.examples()} if len(c) else {}
    return Finding("ok", "The copies are left out" if len(c) else "There are no copies to leave out", figures)


def check_classes(c: ClassShares) -> Finding | None:
    """Check for rare and unbalanced classes."""
    if not c.shares:
        return None
    counts = {name: round(share * c.train) for name, share in c.shares.items()}
    rarest, commonest = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
    figures: dict[str, Figure] = {
        "condition": c.name,
        "classes": len(counts),
        f"most ({commonest})": counts[commonest],
        f"fewest ({rarest})": counts[rarest],
    }
    if len(counts) == 1:
        return Finding("note", "A condition has one value alone", figures, "leave it out: it says nothing")
    if trouble := rare_values(c.name, counts):
        return Finding("problem", trouble.title, figures, trouble.fix)
    if lost := [name for name, count in (c.held_out or {}).items() if not count]:
        figures |= {"classes without": len(lost), "among them": ", ".join(lost[:5])}
        title = "Some classes have no held-out sample, so that theirs cannot be judged"
        return Finding("problem", title, figures, "a larger --held-out, or more of their samples")
    rare = [name for name, count in counts.items() if count < FEW_OF_A_CLASS]
    if rare:
        return Finding(
            "note",
            "Some classes are too rare to be learned well",
            {**figures, f"with fewer than {FEW_OF_A_CLASS}": len(rare), "among them": ", ".join(rare[:5])},
            "more of their samples, or join them into one class",
        )
    if counts[commonest] > 20 * counts[rarest]:
        return Finding(
            "note", "The classes are filled unevenly", figures, "ask for rare ones by name: --cond NAME=VALUE"
        )
    return Finding("ok", "All classes have samples enough", figures)


def check_unreadable(p: ImageStats) -> Finding:
    """Check for files that cannot be decoded."""
    figures: dict[str, Figure] = {"unreadable": len(p.unreadable), "looked at": p.looked, "of": p.total}
    if others := sum(p.left_out.values()):
        figures |= {"left out as no picture": others, "of these": ", ".join(f"{k} {n}" for k, n in p.left_out.items())}
    if not p.unreadable:
        title = "All images that were looked at can be read"
        return Finding("note" if others > p.total else "ok", title, figures)
    name, why = next(iter(p.unreadable.items()))
    share = len(p.unreadable) / p.looked
    return Finding(
        "problem" if share == 1 or len(p.unreadable) > max(1, 0.01 * p.looked) else "note",  # training's own limit
        "Some images cannot be read",
        {**figures, "share": Share(share), "the first": name, "why": why},
        "repair them or take them out; more than 1% end a run",
    )


def check_sizes(p: ImageStats) -> Finding:
    """Check for images that would be enlarged."""
    figures: dict[str, Figure] = {
        "smaller": p.smaller,
        "looked at": p.looked,
        "shortest side": p.least,
        "asked": f"{p.asked[0]}x{p.asked[1]}",
    }
    share = p.smaller / max(p.looked, 1)
    if share <= 0.01:
        return Finding("ok", "The images are as large as asked, or larger", figures)
    title = "Images are smaller than asked, and are blown up to blurred ones"
    return Finding(
        "problem" if share > 0.5 else "note", title, figures, f"--image-size {max(p.least, 1)}, or larger images"
    )


def check_grey(p: ImageStats) -> Finding | None:
    """Check for grey images that would be trained on in colour."""
    if p.channels == 1 or p.looked == 0 or p.grey < 0.5 * p.looked:
        return None
    figures: dict[str, Figure] = {"without colour": p.grey, "looked at": p.looked, "channels": p.channels}
    title = "Most images are grey, and are trained on in colour"
    return Finding("note", title, figures, "--channels 1 costs less and cannot give coloured samples")


VALUE_CHECKS = (check_count, check_held_out, check_infinite, check_range, check_offset, check_constant)
IMAGE_CHECKS = (check_unreadable, check_sizes, check_grey)
