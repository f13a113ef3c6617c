"""Examination of data, a machine or a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from advect.config.arguments import parse_train
from advect.config.build import build_dataset, build_network
from advect.config.config import Config, NetworkConfig
from advect.config.plan import Plan, find_troubles, resolve
from advect.config.threads import seconds_per_step
from advect.core.bounds import bounded
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, make_folder
from advect.core.memory import device_memory
from advect.core.progress import rough_duration
from advect.core.types import Category, Conditions, DataSpec, Length, Quantity
from advect.data import Cells, Dataset, Table, find_copies
from advect.distributed.context import pick_device, run_context
from advect.doctor.calibration import CALIBRATION_CHECKS
from advect.doctor.data import (
    IMAGE_CHECKS,
    VALUE_CHECKS,
    check_classes,
    check_conditions,
    check_copies,
    check_dropped,
    class_shares,
    measure_images,
    measure_values,
)
from advect.doctor.formats import (
    CELL_CHECKS,
    COLUMN_CHECKS,
    check_array,
    check_lengths,
    looks_like_id,
    measure_array,
    read_cells,
    read_columns,
    sequence_lengths,
)
from advect.doctor.losses import LOSS_CHECKS
from advect.doctor.machine import MACHINE_CHECKS, measure_machine
from advect.doctor.report import Bytes, Figure, Finding, run_checks
from advect.doctor.run import RUN_CHECKS, read_facts
from advect.doctor.samples import QUALITY_CHECKS, SAMPLE_CHECKS, gather_samples

STATE_BYTES = 20
"""Bytes a parameter in training: weight, gradient, two moments and EMA, in float32."""

SHARE = 0.6
"""Share of free memory to use."""

COMPARED = 10**8
"""Numbers, and 64 a sample besides, of samples that need no decoding, that are searched for copies in seconds."""


@dataclass(frozen=True)
class ResolvedData:
    """Data named on the command line.

    Attributes:
        format: data format.
        path: file or folder, or None.
        preset, settings: preset for the data, and its configuration.
        fixed_batch: whether the batch size was given, to be judged and not chosen.
    """

    format: str
    path: Path | None
    preset: str
    settings: Config
    fixed_batch: bool

    @classmethod
    def from_words(cls, words: Sequence[str]) -> ResolvedData:
        """Parse the words after ``advect train``: a preset, ``--data PATH``, flags. Raises UserError."""
        preset, arguments = parse_train(list(words))
        data = arguments.settings.data
        place = data.data_dir
        if data.dataset.place is not None and place is None:
            raise UserError(f"preset {preset} reads its data from a folder; add --data-dir FOLDER")
        path = Path(place).expanduser() if place is not None else None
        if isinstance(place, Path) and not place.expanduser().exists():
            raise UserError(f"--data-dir {place} does not exist; name the folder or file of the data")
        named = not words[0].startswith("-")
        fixed = named or any(word.partition("=")[0].replace("_", "-") == "--batch-size" for word in words)
        return cls(data.data_format, path, preset, arguments.settings, fixed)

    def build(self, without: Sequence[str] = ()) -> Dataset:
        """Open the data set, ``without`` some columns of a table. Raises UserError if unusable."""
        data = self.settings.data
        if issubclass(data.dataset, Table):
            asked = {*data.drop, *data.conditions, *data.continuous_conditions, *data.categorical}
            data = data.replaced(drop=(*data.drop, *(name for name in without if name not in asked)))
        return build_dataset(data)


@bounded
def examine_data(
    words: Sequence[str],
    *,
    look: Annotated[int, Meta(ge=2)] = 2000,
    device: str = "auto",
    copies: Path | None = None,
) -> list[Finding]:
    """Examine at most ``look`` samples of the data named by the words after ``advect train``.

    ``copies`` is a file to write the list of all copies to. Raises UserError for mistakes in the words, and unknown
    data.
    """
    data, place = ResolvedData.from_words(words), pick_device(device)
    findings: list[Finding] = []
    without = _examine_file(data, look, findings)
    try:
        dataset = data.build(without)
        findings.extend(_examine_dataset(dataset, look, copies))
    except UserError as error:
        return [*findings, Finding("problem", "The data cannot be used as they are", {"why": str(error)})]
    return [*findings, *_suggest(data, dataset, device_memory(place)[1], str(place))]


def examine_machine(folder: Path = Path("runs"), *, device: str = "auto") -> list[Finding]:
    """Examine this machine; ``folder`` is the folder of runs."""
    return run_checks(measure_machine(folder, device), MACHINE_CHECKS)


def examine_run(
    path: Path, *, samples: int = 0, seed: int = 0, device: str = "auto", data: str | None = None
) -> list[Finding]:
    """Examine a run folder and, if ``samples`` > 0, new samples beside the data.

    Raises UserError without a run at ``path``, or if it cannot be sampled.
    """
    facts = read_facts(path)
    findings = run_checks(facts, (*RUN_CHECKS, *LOSS_CHECKS, *QUALITY_CHECKS, *CALIBRATION_CHECKS))
    if not samples:
        return findings
    if facts.checkpoint is None:
        raise UserError(f"--samples {samples} needs a checkpoint, and {path} has none; leave --samples out")
    return findings + run_checks(gather_samples(path, samples, seed=seed, device=device, data=data), SAMPLE_CHECKS)


def _examine_file(data: ResolvedData, look: int, findings: list[Finding]) -> list[str]:
    """Examine a stored file of cells, a table or an array; return the columns to leave out of a table."""
    if data.path is None or not data.path.is_file():
        return []
    settings = data.settings.data
    try:
        if issubclass(settings.dataset, Cells):
            findings += run_checks(read_cells(data.path, look, settings.layer), CELL_CHECKS)
        elif issubclass(settings.dataset, Table):
            words = {"missing": settings.missing or None, "decimal": settings.decimal}
            words |= {"text": settings.categorical, "numeric": settings.numeric, "date_order": settings.date_order}
            unused = {*settings.drop, settings.key}
            columns = [c for c in read_columns(data.path, **words) if c.name not in unused]
            findings += run_checks(columns, COLUMN_CHECKS)
            return sorted({*looks_like_id(columns), *(c.name for c in columns if c.missing == 1)})
        elif data.format in ("array-file", "sequences") and (array := measure_array(data.path, look)):
            findings.append(check_array(array))
    except UserError:
        return []  # building the data set reports it
    return []


def _examine_dataset(dataset: Dataset, look: int, copies: Path | None) -> Iterator[Finding]:
    """Findings in turn, so that those before unreadable data are reported."""
    images = measure_images(dataset, look)
    if images is not None:
        yield from run_checks(images, IMAGE_CHECKS)
        if len(images.unreadable) == images.looked:
            return
    yield from run_checks(measure_values(dataset, look), VALUE_CHECKS)
    yield from _examine_copies(dataset, look, copies)
    for shares in class_shares(dataset, look):
        yield from run_checks(shares, [check_classes])
    lengths = sequence_lengths(dataset)
    if lengths is not None:
        yield check_lengths(lengths)


def _examine_copies(dataset: Dataset, look: int, file: Path | None) -> list[Finding]:
    """Copies among all samples if these are few or to be listed in a file, else among ``look``."""
    if (found := dataset.copies) is None:
        size = (len(dataset.train) + len(dataset.held_out)) * (64 + math.prod(dataset.spec.shape))
        whole = file is not None or (size <= COMPARED and dataset.train.files is None)
        found = find_copies(dataset, None if whole else look)
    if file is not None:
        make_folder(file.parent, "--copies")
        atomic_write_text(file, found.to_csv())
    return run_checks(found, (check_copies if dataset.copies is None else check_dropped, check_conditions))


def _suggest(data: ResolvedData, dataset: Dataset, free: int, device: str) -> Iterator[Finding]:
    """Findings about the plan, the one that sums it up last."""
    network, held_out = data.settings.network, len(dataset.held_out)
    gpu = not device.startswith("cpu")
    elements = dataset.modality.size
    config, plan = resolve(
        data.settings, dataset.spec.modality, len(dataset.train), held_out, elements=elements, gpu=gpu
    )
    try:
        parameters, activations = measure_network(network, dataset.spec)
    except UserError as error:  # a preset's network may not take this shape
        yield Finding("note", "The network of the preset does not fit the data", {"why": str(error)})
        return
    t, pace = config.training, None
    needs = MemoryNeeds(
        network=network.network,
        preset=data.preset,
        parameters=parameters,
        activations=activations,
        free=free,
        device=device,
        train=len(dataset.train),
        usual=plan.batch,
        steps=plan.last_step(t),
        why=plan.why,
        fixed=data.fixed_batch,
        early=t.early_stopping == "yes",
    )
    if needs.usual <= needs.most:
        pace = _pace(config, plan, dataset, device)
        needs = replace(needs, minutes=None if pace is None else plan.minutes(pace, t))
    for trouble in find_troubles(plan, t, pace):
        yield Finding("problem", trouble.title, {"steps": needs.steps}, trouble.fix)
    yield check_plan(needs)


def _pace(config: Config, plan: Plan, dataset: Dataset, device: str) -> float | None:
    """Seconds of a step here, from a few; None if they fail."""
    try:
        with run_context(device) as context:
            return seconds_per_step(context, config, dataset, steps=plan.steps)
    except UserError:
        return None


@dataclass(frozen=True, kw_only=True)
class MemoryNeeds:
    """Figures of a run's plan, and of the memory it needs.

    Attributes:
        parameters: number of parameters.
        activations: bytes stored for the backward pass a sample, in float32.
        free: free memory of ``device`` in bytes.
        train: training samples.
        usual: batch size that advect train would take.
        steps, why: its number of steps, and the reason.
        fixed: whether it was given.
        early: whether the held-out loss ends the run earlier.
        minutes: that the run would take here, if known.
    """

    network: str
    preset: str
    parameters: int
    activations: float
    free: int
    device: str
    train: int
    usual: int
    steps: int
    why: str = ""
    fixed: bool = False
    early: bool = False
    minutes: float | None = None

    def memory(self, batch: int) -> float:
        """Bytes of memory for training at this batch size."""
        return STATE_BYTES * self.parameters + self.activations * batch

    @property
    def most(self) -> int:
        """Largest batch that fits, or 0."""
        return max(int((SHARE * self.free - STATE_BYTES * self.parameters) / self.activations), 0)

    @property
    def batch(self) -> int:
        """The usual batch size, reduced to fit the memory."""
        return self.usual if self.fixed or self.usual <= self.most else _power(max(self.most, 1))


def check_plan(p: MemoryNeeds) -> Finding:
    """Suggest a network and batch size, and check their memory."""
    figures: dict[str, Figure] = {
        "network": p.network,
        "parameters": p.parameters,
        "batch size": p.batch,
        "memory for it": Bytes(p.memory(p.batch)),
        f"free on {p.device}": Bytes(p.free),
        "largest batch that fits": p.most,
        "steps": p.steps,
        "because": p.why,
    }
    if p.early:
        figures["ends earlier"] = "when the held-out loss no longer falls"
    if p.minutes is not None:
        figures["time here, about"] = rough_duration(60 * p.minutes)
    if p.most < (p.batch if p.fixed else 1):
        return Finding(
            "problem",
            "Training would take more memory than there is",
            figures,
            f"--batch-size {_power(p.most)}, or --accumulate {math.ceil(p.batch / p.most)}, or --grad-checkpointing"
            if p.most
            else "a smaller network",
        )
    if p.fixed:
        return Finding("ok", "The configuration fits the memory", figures)
    if p.batch < p.usual:
        title = f"The planned batch of {p.usual} does not fit the memory"
        return Finding("note", title, figures, f"advect train {p.preset} --batch-size {p.batch}")
    return Finding("ok", f"Preset {p.preset} would train {p.steps:,} steps with batches of {p.batch}", figures)


def measure_network(config: NetworkConfig, spec: DataSpec) -> tuple[int, float]:
    """Number of parameters, and bytes stored by a forward pass a sample, by meta tensors.

    Raises UserError if the network does not fit the data.
    """
    rows = 2
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, torch.nn.Parameter):
            kept[x.untyped_storage()._cdata] = x
        return x

    with torch.device("meta"):
        net = build_network(config, spec)
        x, t, cond = torch.empty(rows, *spec.shape), torch.empty(rows), _conditions(spec, rows)
        weights = {p.untyped_storage()._cdata for p in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            net(x, t, cond).sum()
    saved = sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in weights)
    count = sum(p.numel() for p in net.parameters())
    return count, max(saved / rows, 4.0 * x[0].numel())


def _conditions(spec: DataSpec, rows: int) -> Conditions | None:
    cond: Conditions = {}
    for name, condition in spec.conditions.items():
        match condition:
            case Category():
                cond[name] = torch.zeros(rows, dtype=torch.int64)
            case Quantity():
                cond[name] = torch.zeros(rows, len(condition.mean))
            case Length():
                cond[name] = torch.full((rows,), spec.shape[0])
    return cond or None


def _power(n: int) -> int:
    """Largest power of two up to n, at least 1."""
    return 2 ** max(n, 1).bit_length() // 2
