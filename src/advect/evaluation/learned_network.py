"""Features of images by a small network trained on the data's own training part.

Principal components of pixels keep colours and rough layouts: a blur or a blend of two pictures lies among the real
ones. A network that learns to tell real images from corrupted ones, their classes, and to redraw them coarsely, has
features that see structure.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advect.core.random import LayerRng, Stream, stream_seed
from advect.core.threads import kept_threads
from advect.core.types import Category
from advect.data import Dataset, Split
from advect.distributed.comm import broadcast_object
from advect.distributed.context import progress_bar
from advect.evaluation.corruptions import KINDS, corrupt
from advect.evaluation.workspace import ReferenceCache, on_rank_zero

logger = logging.getLogger(__name__)

LEAST_ROWS, MOST_ROWS, LEAST_HELD_OUT = 100, 10_000, 20
"""Training rows needed and used; held-out rows needed, for the check."""

LEAST_SIDE, MOST_SIDE = 8, 64
"""Sides of images; larger ones are reduced."""

GOOD_ENOUGH = 0.5
"""Share of corruptions to be recognised on held-out images; chance is 1 / KINDS."""

WIDTH, DIMENSIONS, COARSE, BATCH, RATE = 16, 64, 8, 64, 4e-3
VERSION = 1
"""Of the training, for the cache."""

TIMED, DESCRIBED = 3, 80
"""Steps that are timed, and as many as take the time of the features of all rows."""


class TooSlow(Exception):
    """Training takes more time than there is."""


class Residual(nn.Module):
    """x + ReLU(norm(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return x + F.relu(self.norm(self.conv(x)))


class Encoder(nn.Module):
    """Images (N, C, side, side) in [-1, 1] to features (N, DIMENSIONS); halved until 4 x 4, then linear."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, rest = WIDTH, side
        while rest > 4:
            stride = 1 if not layers and side < MOST_SIDE else 2
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [Residual(width)] if len(layers) > 3 else []
            channels, width, rest = width, min(2 * width, 8 * WIDTH), rest // stride
        self.body, self.out = nn.Sequential(*layers), nn.Linear(16 * channels, DIMENSIONS)

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        return self.out(self.body(x).flatten(1))


@dataclass(frozen=True)
class Examples:
    """Images (N, C, side, side), uint8, and the codes (N,) of their categories, negative where missing."""

    images: Tensor
    labels: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, places: Tensor) -> Tensor:
        """Images at ``places``, in [-1, 1]."""
        return self.images[places].float() / 127.5 - 1


class LearnedNetwork:
    """Map images (N, C, H, W) in data units to features (N, DIMENSIONS) of mean variance 1 over training images.

    ``tensors`` are the encoder's state, and ``about.*``: side, range of values, standard deviations of the features,
    and accuracies on held-out images.
    """

    name = "a network trained on these data"

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        self.tensors, self.device = dict(tensors), torch.device(device)
        about = {k.removeprefix("about."): v for k, v in tensors.items() if k.startswith("about.")}
        self.side, (self.low, self.high) = int(about["side"]), about["range"].tolist()
        self.scale = about["scale"]
        self.corruptions = float(about["corruptions"])
        """Share of held-out images whose corruption is recognised."""
        self.classes = {k.removeprefix("classes."): float(v) for k, v in about.items() if k.startswith("classes.")}
        """Share of held-out images whose category is recognised, by condition."""
        with LayerRng().used():
            self._net = Encoder(tensors["body.0.weight"].shape[1], self.side)
        self._net.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("about.")})
        self._net.eval().to(self.device)
        digest = hashlib.sha256(f"learned {VERSION} {self.side} {self.low} {self.high}".encode())
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
        self.identity = digest.hexdigest()

    @property
    def good_enough(self) -> bool:
        """Whether it recognises enough of held-out images."""
        return self.corruptions >= GOOD_ENOUGH

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, DIMENSIONS), float32 on the CPU."""
        small = resized(x.to(self.device), self.side, self.low, self.high).float() / 127.5 - 1
        return torch.cat([self._net(part) for part in small.split(BATCH)]).cpu() / self.scale


def resized(x: Tensor, side: int, low: float, high: float) -> Tensor:
    """Images (N, C, H, W) of ``low`` to ``high`` as bytes (N, C, side, side), bilinear with antialiasing."""
    x = (x.float() - low) * (255 / (high - low))
    if x.shape[2:] != (side, side):
        x = F.interpolate(x.clamp(0, 255), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return x.clamp(0, 255).round().to(torch.uint8)


def learned_network(
    dataset: Dataset, cache: ReferenceCache, device: torch.device, seconds: float = math.inf
) -> LearnedNetwork | None:
    """Network of the data, from the cache or trained (a minute at most on one core); None, and a note, if none serves.

    Raises TooSlow if its training would take more than so many seconds.

    Collective. Training depends on the training part alone, and on no random state or number of threads.
    """
    why = _unsuitable(dataset)
    if why:
        logger.info(f"note: pixels are compared, not the features of a network trained on these data: {why}")
        return None
    key = {
        "fingerprint": dataset.fingerprint,
        "what": f"feature network {VERSION}",
        "shape": " ".join(map(str, dataset.spec.shape)),
        "conditions": " ".join(sorted(_categories(dataset))) or "none",
    }

    def made() -> dict[str, Tensor] | None:
        found = cache.load(key)
        if found is None and seconds < math.inf and foretold(dataset) > seconds:
            return None
        return found or cache.get(key, lambda: train(dataset))

    tensors = broadcast_object(on_rank_zero(made))
    if tensors is None:
        raise TooSlow
    network = LearnedNetwork(tensors, device)
    if network.good_enough:
        return network
    logger.info(
        "note: pixels are compared, not the features of a network trained on these data, which recognises only "
        f"{network.corruptions:.0%} of corrupted held-out images"
    )
    return None


def _unsuitable(dataset: Dataset) -> str:
    """Why no network can be trained, or nothing."""
    shape, rows, held_out = dataset.spec.shape, len(dataset.train), len(dataset.held_out)
    if min(shape[1:]) < LEAST_SIDE:
        return f"they have fewer than {LEAST_SIDE} pixels along a side"
    if rows < LEAST_ROWS or held_out < LEAST_HELD_OUT:
        return (
            f"{rows:,} training and {held_out:,} held-out images are fewer than the {LEAST_ROWS} and {LEAST_HELD_OUT} "
            "it takes"
        )
    return ""


def _categories(dataset: Dataset) -> dict[str, int]:
    """Number of classes of each condition with 20 rows a class on average."""
    kinds = {name: len(kind.names) for name, kind in dataset.spec.conditions.items() if isinstance(kind, Category)}
    return {name: n for name, n in kinds.items() if n > 1 and len(dataset.train) >= 20 * n}


def _examples(dataset: Dataset, split: Split, limit: int, side: int, span: tuple[float, float]) -> Examples:
    places = np.linspace(0, len(split) - 1, min(limit, len(split))).round().astype(np.int64)
    images, labels = [], {name: [] for name in _categories(dataset)}
    for i in range(0, len(places), 256):
        x, cond = dataset.modality.data(split, places[i : i + 256])
        images.append(resized(x, side, *span))
        for name, codes in labels.items():
            codes.append(cond[name].long())
    return Examples(torch.cat(images), {name: torch.cat(codes) for name, codes in labels.items()})


def train(dataset: Dataset) -> dict[str, Tensor]:
    """Tensors of the :class:`LearnedNetwork` of a data set."""
    side, span = _side(dataset), _span(dataset)
    examples = _examples(dataset, dataset.train, MOST_ROWS, side, span)
    steps = min(600, max(200, len(examples)))
    with _one_thread():
        training = _training(dataset, examples, side, steps)
        net, heads, labels = next(training)
        with progress_bar(steps, "train the features", "step") as bar:
            bar.update()
            for _ in training:
                bar.update()
        net.eval()
        return _described(net, heads, labels, examples, _examples(dataset, dataset.held_out, 1000, side, span), span)


def foretold(dataset: Dataset) -> float:
    """Seconds that :func:`train` takes here, from some rows and steps."""
    side, span, began = _side(dataset), _span(dataset), time.monotonic()
    few = _examples(dataset, dataset.train, BATCH, side, span)
    row, rows = (time.monotonic() - began) / len(few), min(MOST_ROWS, len(dataset.train))
    steps = min(600, max(200, rows))
    with _one_thread():
        training = _training(dataset, few, side, steps)
        next(training)
        began = time.monotonic()
        for _ in range(TIMED):
            next(training)
        each = (time.monotonic() - began) / TIMED
    return row * (rows + min(1000, len(dataset.held_out))) + each * (steps + DESCRIBED)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context of one thread, as threads change the order of sums."""
    with kept_threads():
        torch.set_num_threads(1)
        yield


def _training(
    dataset: Dataset, examples: Examples, side: int, steps: int
) -> Iterator[tuple[nn.Module, nn.ModuleDict, dict[str, str]]]:
    """Encoder, heads, and the heads' names by condition, after each step."""
    rng = torch.Generator().manual_seed(stream_seed(0, Stream.FEATURE_NETWORK) >> 1)
    labels = {name: f"label{i}" for i, name in enumerate(examples.labels)}
    with LayerRng(stream_seed(0, Stream.FEATURE_NETWORK, 1) >> 1).used():
        net = Encoder(dataset.spec.shape[0], side)
        heads = nn.ModuleDict({"kind": nn.Linear(DIMENSIONS, KINDS)})
        heads["coarse"] = nn.Linear(DIMENSIONS, dataset.spec.shape[0] * COARSE**2)
        for name, head in labels.items():
            heads[head] = nn.Linear(DIMENSIONS, _categories(dataset)[name])
    optimiser = torch.optim.AdamW([*net.parameters(), *heads.parameters()], lr=RATE, weight_decay=0.05)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * (1 - step / steps)
        loss = _loss(net, heads, labels, examples, rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield net, heads, labels


def _side(dataset: Dataset) -> int:
    """Side of the images in the network."""
    return min(MOST_SIDE, max(LEAST_SIDE, 2 ** math.ceil(math.log2(max(dataset.spec.shape[1:])))))


def _span(dataset: Dataset) -> tuple[float, float]:
    """Values of black and white: the transform's, or the least and greatest of some rows."""
    known = getattr(dataset.modality, "pixel_range", None)
    if known is not None:
        return known
    places = np.linspace(0, len(dataset.train) - 1, min(256, len(dataset.train))).round().astype(np.int64)
    x = dataset.modality.data(dataset.train, places)[0]
    low, high = float(x.min()), float(x.max())
    return low, high if low < high else low + 1


def _loss(
    net: nn.Module, heads: nn.ModuleDict, labels: Mapping[str, str], examples: Examples, rng: torch.Generator
) -> Tensor:
    """Of one random batch: the kind of corruption, the image made coarse, and the classes."""
    places = torch.randint(len(examples), (BATCH,), generator=rng)
    kinds = torch.randint(1, KINDS, (BATCH,), generator=rng)
    kinds = torch.where(torch.rand(BATCH, generator=rng) < 0.3, 0, kinds)
    x = corrupt(_shifted(examples.batch(places), rng), kinds, rng)
    z = net(x)
    loss = F.cross_entropy(heads["kind"](z), kinds)
    loss = loss + F.mse_loss(heads["coarse"](z), F.adaptive_avg_pool2d(x, COARSE).flatten(1))
    for name, head in labels.items():
        codes = examples.labels[name][places]
        errors = F.cross_entropy(heads[head](z), codes.clamp(min=0), label_smoothing=0.1, reduction="none")
        loss = loss + (errors * (codes >= 0)).mean() / len(labels)
    return loss


def _shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Images moved by at most a sixteenth of their side, all alike."""
    reach, side = max(1, x.shape[2] // 16), x.shape[2]
    i, j = torch.randint(2 * reach + 1, (2,), generator=rng).tolist()
    return F.pad(x, (reach,) * 4, mode="replicate")[:, :, i : i + side, j : j + side]


@torch.no_grad()
def _described(
    net: nn.Module,
    heads: nn.ModuleDict,
    labels: Mapping[str, str],
    examples: Examples,
    held_out: Examples,
    span: tuple[float, float],
) -> dict[str, Tensor]:
    """The encoder's state, and what is known of it."""
    rng = torch.Generator().manual_seed(stream_seed(0, Stream.FEATURE_NETWORK, 2) >> 1)
    features = lambda x: torch.cat([net(part) for part in x.split(BATCH)])
    every = torch.cat([net(examples.batch(some)) for some in torch.arange(len(examples)).split(BATCH)])
    clean = held_out.batch(torch.arange(len(held_out)))
    kinds = torch.arange(len(clean)) % KINDS
    about: dict[str, Tensor] = {
        "side": torch.tensor(clean.shape[2]),
        "range": torch.tensor(span, dtype=torch.float64),
        "scale": every.std(0).clamp(min=1e-6),
        "corruptions": (heads["kind"](features(corrupt(clean, kinds, rng))).argmax(1) == kinds).double().mean(),
    }
    for name, head in labels.items():
        codes = held_out.labels[name]
        right = heads[head](features(clean)).argmax(1) == codes
        if (codes >= 0).any():
            about[f"classes.{name}"] = right[codes >= 0].double().mean()
    return {**net.state_dict(), **{f"about.{name}": value for name, value in about.items()}}
