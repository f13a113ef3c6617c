"""The job behind ``advect reflow``.

OUTPUT/pairs-1/ ...         pairs of noise and samples that the run's flow makes, as runs.pairs tells
OUTPUT/2-rectified/         the run folder of the flow that learns them, and so on
OUTPUT/distilled/           that of the one-step flow
OUTPUT/reflow.json          all flows, measured; report.html shows them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from advect.core.errors import UserError
from advect.core.group import agree, broadcast_object, joined
from advect.core.platform import tune_process
from advect.core.random import mix
from advect.data import Source
from advect.runs.arguments import run_folder
from advect.runs.build import build_source, pick_device
from advect.runs.config import Config
from advect.runs.loading import load, read_card, weight_file
from advect.runs.pairs import FACTS, Pairing, make_pairs
from advect.runs.reflow_arguments import ReflowArguments
from advect.runs.reflow_report import check_measure, measure_flows
from advect.runs.sampling import weights_identity
from advect.runs.training import train
from advect.training.checkpoint import find_checkpoint

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a call ended: which flows there are, the first one's run included, why the last one stopped, the report."""

    flows: dict[str, Path]
    reason: str
    report: Path | None


def reflow(run: Path, preset: str, a: ReflowArguments, *, say: Say = print, progress: bool = True) -> Ended:
    """Make pairs and train on them as often as asked, shared by all processes; go on where an earlier call ended.

    Each flow begins with the averaged weights of the one before, and learns pairs that it has made (Liu, Gong & Liu
    2023, "Flow straight and fast", alg. 1). Raises UserError for arguments that do not fit the run, and for a folder
    that holds the work of another call.
    """
    tune_process()
    folder = (a.output_dir or run_folder(run) / "reflow").absolute()
    with joined(pick_device(a.settings.training.device)) as me:
        say = say if me.is_first else lambda text: None
        with agree():
            source = build_source(a.settings.data)
            place = find_checkpoint(run) if me.is_first else run
            if a.measure:  # what would fail after the training fails before it
                check_measure(source, a)
        place, flows, reason = broadcast_object(place), {"1-rectified": run}, "finished"
        rounds = [f"{k + 2}-rectified" for k in range(a.iterations)] + (["distilled"] if a.distill else [])
        for k, name in enumerate(rounds):
            pairs = folder / f"pairs-{k + 1}"
            _make(place, source, pairs, _pairing(a, k, len(source.train)), a.settings.training.device, progress, say)
            config = _config(a, pairs, place, guided=a.guidance != 1, distil=name == "distilled")
            say(f"{name}: learning {pairs}")
            flows[name], reason = train(config, preset, run_dir=folder / name, resume="auto", say=say)
            if reason not in ("finished", "max-steps"):
                break
            reason = "finished"
            place = broadcast_object(find_checkpoint(folder / name) if me.is_first else place)
        report = None
        if a.measure and reason == "finished":
            report = measure_flows(folder, flows, source, a, say=say, progress=progress)
        return Ended(flows, reason, report)


def _pairing(a: ReflowArguments, k: int, rows: int) -> Pairing:
    """How the pairs of round k are made; their noise is none that an evaluation draws."""
    guided = k == 0
    return Pairing(
        num_pairs=rows if a.num_pairs is None else a.num_pairs,
        solver=a.pair_solver,
        steps=a.pair_steps,
        grid=a.pair_grid,
        guidance=a.guidance if guided else 1.0,
        guidance_interval=a.guidance_interval if guided else None,
        real_share=a.real_share,
        store=a.store,
        seed=mix(a.settings.training.seed, 11, k) >> 33,
    )


def _make(place: Path, source: Source, folder: Path, pairing: Pairing, device: str, progress: bool, say: Say) -> None:
    """Have the flow of a checkpoint make pairs, unless they are there."""
    with agree():
        flow = load(place, device=device)
        card = read_card(weight_file(place, ema=True))
        if card.fingerprint != source.fingerprint:
            raise UserError(f"the data of {place} have changed since it was trained; give the data it was trained on")
    if not (folder / FACTS).is_file():
        say(f"making {pairing.num_pairs:,} pairs in {folder}")
    made_by = weights_identity(place, True)
    make_pairs(flow, card.noise, source, folder, pairing, made_by=made_by, show=progress, say=say)


def _config(a: ReflowArguments, pairs: Path, place: Path, *, guided: bool, distil: bool) -> Config:
    config = a.settings
    method, output = config.method, config.output
    if guided:  # a pair that was made for a label is none of no label
        method = replace(method, label_dropout=0.0)
    if distil:
        method = replace(method, times="start", loss="same", weight="uniform", margin=1e-3)
        output = replace(output, solver="euler", sample_steps=1, grid="uniform")
    training = replace(config.training, init_from=place, pairs=pairs)
    return replace(config, method=method, training=training, output=output)
