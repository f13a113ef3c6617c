"""advect reflow RUN [flags]: straighten a trained flow, for sampling in few steps."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta

from advect.checkpoint.manifest import find_checkpoint
from advect.commands.evaluate import evaluate
from advect.commands.train import exit_by_signal, train
from advect.config.arguments import parse_config, parse_settings, run_folder
from advect.config.build import build_dataset
from advect.config.config import Config
from advect.config.flags import asks_help, launch_processes
from advect.config.places import split_place
from advect.config.presets import DEFAULT, get_preset
from advect.config.section import Section, part
from advect.core.bounds import Evaluations, GuidanceScale, Processes, Share, Steps, Time
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, claim_folder, make_folder
from advect.core.random import Stream, stream_seed
from advect.core.types import Category
from advect.data import Dataset
from advect.data.figure import save_png
from advect.distributed.comm import broadcast_object, sync_errors
from advect.distributed.context import RunContext, run_context
from advect.evaluation.features import FeatureConfig
from advect.evaluation.protocol import EvalConfig
from advect.model.conditions import CYCLE
from advect.model.load import load, read_model_metadata, weight_file
from advect.model.pairs import FACTS, PairConfig, make_pairs, read_facts
from advect.model.sampler_config import SamplerConfig, plan_sweep
from advect.model.sampling import weights_identity
from advect.reporting.reflow_page import FORMAT, REFLOW, write_reflow

logger = logging.getLogger(__name__)

SHARED = True

NFES = (1, 2, 4, 8, 16, 32, 100)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReflowArguments(Section):
    """Pairs and flows; training flags default to the run's."""

    settings: Config = field(metadata={"flag": False})

    iterations: Annotated[int, Meta(ge=1, le=100)] = 2
    """Number of rounds of pairs and training."""
    distill: bool = False
    """Train a last flow on pairs at t = 0 only, for one-step sampling."""
    num_pairs: Annotated[int, Meta(ge=20, le=10**9)] | None = None
    """Pairs for each flow; default the number of training samples."""
    pair_solver: str | None = part("solver", default=None)
    """Solver for the pairs; default that of the run's sample grids."""
    pair_steps: Steps | None = None
    """Its steps; default those of the run's sample grids."""
    pair_grid: str | None = part("grid", default=None)
    """Its time grid."""

    guidance: GuidanceScale = 1.0
    """Scale of classifier-free guidance for the first flow's pairs; later flows learn it."""

    guidance_interval: tuple[Time, Time] | None = None
    """Times LO HI between which guidance acts; default all."""
    real_share: Share = 0.0
    """Share of pairs that are real data carried back to noise (Lee, Lin & Fanti 2024)."""
    store: Literal["auto", "float32", "bf16", "uint8"] = "auto"
    """Storage type of samples; auto: bf16 for images, else float32."""
    output_dir: Path | None = None
    """Folder for pairs, flows and report; default RUN/reflow."""

    measure: bool = True
    """Measure all flows at the end, and write the report."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    measure_samples: Annotated[int, Meta(ge=20, le=10**9)] = 2000
    """Samples for each measured point."""
    nfes: tuple[Evaluations, ...] = NFES
    """Numbers of network evaluations for measurements, by Euler's method."""
    nproc: Processes = 1
    """Local processes, one a GPU if there are any, as by torchrun --nproc_per_node."""

    usual = frozenset({"iterations", "distill", "num_pairs", "guidance", "output_dir", "measure", "nproc"})

    def __post_init__(self) -> None:
        super().__post_init__()
        adaptive = self.pair_solver is not None and self.part("pair_solver").adaptive  # pyright: ignore
        if adaptive and (self.pair_steps or self.pair_grid):
            raise UserError(
                f"--pair-solver {self.pair_solver} chooses its own steps; leave --pair-steps and --pair-grid out"
            )
        if not self.nfes:
            raise UserError("--nfes needs one or more whole numbers, such as 1 4 20")
        asked = self.features.features or self.nfes != NFES or self.measure_samples != type(self).measure_samples
        if asked and not self.measure:
            raise UserError("--no-measure measures nothing; leave --features, --nfes and --measure-samples out")


def run(words: list[str]) -> None:
    """Run ``advect reflow`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect reflow", ReflowArguments)
    with sync_errors():
        known = len(flags) < len(words) and not (asks_help(flags) and not place.exists())
        preset, a = parse_reflow(place if known else None, flags)
    if a.nproc != 1:
        launch_processes("reflow", words, a.nproc, a.settings.training.device)
    result = reflow(place, preset, a)
    if result.reason != "finished":
        logger.info(f"stopped by {result.reason}; to go on, type: {shlex.join(['advect', 'reflow', *words])}")
    for name, folder in result.flows.items():
        logger.info(f"{name}: {folder}")
    if result.report:
        logger.info(f"report: {result.report}")
    exit_by_signal(result.reason)


def parse_reflow(run: Path | None, words: list[str]) -> tuple[str, ReflowArguments]:
    """Parse the words after ``advect reflow RUN``: the run's preset, and arguments; without a run for --help.

    Raises UserError, also for another network than the run's.
    """
    if run is None:
        preset, config = DEFAULT, get_preset(DEFAULT).config
    else:
        preset, config = parse_config(run_folder(run) / "config.yaml")
    if config.method.masked:
        raise UserError(
            f"advect reflow straightens flows of whole samples, and {run} was trained with --mask "
            f"{config.method.mask}, whose questions start from other noise; train a run without --mask"
        )
    if config.method.discrete:
        raise UserError(
            f"advect reflow straightens flows along an ODE, and the tokens of {run} jump; raise --num-steps"
        )
    if config.method.learns_steps:
        raise UserError(
            f"advect reflow straightens flows for few steps, and {run} was trained with --objective "
            f"{config.method.objective} to take few; give the run that it began from"
        )
    config = for_pairs(config)
    a = parse_settings(
        ReflowArguments(settings=config),
        words,
        prog="advect reflow RUN",
        description="Straighten a trained flow until few steps draw as well as many did (Liu, Gong & Liu 2023): pairs "
        "of noise and samples are made by the flow, and the next flow, which begins with its weights, learns to join "
        "them by straight lines. Ended by anything, it goes on where it was when it is repeated.",
    )
    if a.settings.network != config.network:
        raise UserError("advect reflow goes on from the weights of the run, so its network must stay; leave that out")
    for flag, there, here in (
        ("--path", config.method.path, a.settings.method.path),
        ("--coupling", "pairs", a.settings.method.coupling),
        ("--objective", config.method.objective, a.settings.method.objective),
        ("--init-from", None, a.settings.training.init_from),
        ("--pairs", None, a.settings.training.pairs),
        ("--early-stopping", "no", a.settings.training.early_stopping),
    ):
        if there != here:
            raise UserError(f"{flag} {here} contradicts advect reflow, which needs {there}; leave it out")
    if a.settings.training.max_minutes is not None:
        raise UserError(
            "--max-minutes would end each call of advect reflow elsewhere; give --max-steps or --num-epochs"
        )
    return preset, a


def for_pairs(config: Config) -> Config:
    """Configuration to train on pairs of a flow of ``config``: straight paths, no jitter.

    Predicts the velocity instead of noise or score, which are uninformative at t = 0.
    """
    if config.network.score_network != "none":
        raise UserError(
            f"advect reflow trains no score, and the run has --score-network {config.network.score_network}; take a "
            "run without"
        )
    objective = config.method.objective if config.method.learns_posterior else "flow-matching"
    method = config.method.replaced(objective=objective, path="cond-ot", sigma_min=None, coupling="pairs")
    if method.prediction in ("noise", "score"):
        method = method.replaced(prediction="velocity", loss_space="same", weight="uniform")
    training = {"max_steps": None, "max_minutes": None, "early_stopping": "no", "pair_ahead": False}
    training = config.training.replaced(**training, threads=None)  # measured anew
    return replace(config, method=method, training=training)


SHOWN = (1, 2, 4, 8, 100)
"""Numbers of evaluations for the pictures."""

SOLVER = "euler"
"""Solver of the report: one evaluation a step, exact on straight paths."""


def check_measure(source: Dataset, a: ReflowArguments) -> None:
    """Raise UserError if :func:`measure_flows` cannot measure these data."""
    if not len(source.held_out):
        raise UserError(f"{source.name} has no held-out samples to measure with; hold some out, or give --no-measure")
    if a.features.features is not None:
        source.modality.check_features("--features")
    a.features.network(torch.device("cpu"))


def measure_flows(context: RunContext, flows: Mapping[str, Path], source: Dataset, a: ReflowArguments) -> Path:
    """Measure flows by name, the run's first; write reflow.json and report.html. Collective and resumable."""
    folder, device = context.run_dir, a.settings.training.device
    metrics = source.modality.reflow_metrics
    measured = []
    for i, (name, run) in enumerate(flows.items()):
        logger.info(f"measuring {name}")
        distilled = name == "distilled"
        config = EvalConfig(
            features=a.features,
            num_samples=a.measure_samples,
            metrics=(*metrics, "straightness"),
            solver=(SOLVER,),
            grid=("uniform",),
            nfe=(1,) if distilled else a.nfes,
            device=device,
            guidance=a.guidance if i == 0 else 1.0,
            guidance_interval=a.guidance_interval if i == 0 else None,
        )
        _, result = evaluate(run, config)
        measured.append({"name": name, "run": str(run), "about": _about(run, i, result), "result": result})
    shown = [nfe for nfe in SHOWN if nfe in a.nfes] or [min(a.nfes), max(a.nfes)]
    if context.env.is_first:
        for i, flow in enumerate(measured):
            guided = {"guidance": a.guidance, "guidance_interval": a.guidance_interval} if i == 0 else {}
            at = [1] if flow["name"] == "distilled" else shown
            flow["pictures"] = _decode(folder, flow["name"], Path(flow["run"]), at, source, device, guided)
        title = run_folder(next(iter(flows.values()))).resolve().name
        values = {"format": FORMAT, "title": title, "metric": metrics[0], "shown": shown, "flows": measured}
        atomic_write_text(folder / REFLOW, json.dumps(values, indent=1, allow_nan=False) + "\n")
        write_reflow(folder)
    return folder / "report.html"


def _about(run: Path, i: int, result: dict[str, Any]) -> str:
    """Training of a flow, as a sentence."""
    step = result["subject"]["step"]
    if i == 0:
        return f"The run itself, at step {step:,}."
    _, config = parse_config(run / "config.yaml")
    assert config.training.pairs is not None
    facts = read_facts(config.training.pairs)
    way = f"{facts['solver']} in {facts['steps']} steps" if facts["steps"] else facts["solver"]
    real = f" and {facts['inverted']:,} of real data carried back" if facts["inverted"] else ""
    at = " at t = 0 alone" if config.method.times == "start" else ""
    return f"{step:,} steps{at} on {facts['generated']:,} pairs made by {facts['weights']}, {way}{real}."


def _decode(
    folder: Path, name: str, run: Path, shown: list[int], source: Dataset, device: str, guided: dict[str, Any]
) -> dict[str, str]:
    """Sample the same noise at each cost; return the pictures' names."""
    flow = load(run, device=device)
    pictures = make_folder(folder / "pictures", "--output-dir")
    cond = {c: CYCLE for c, kind in list(flow.spec.conditions.items())[:1] if isinstance(kind, Category)}
    behind = flow.modality.reference(source.held_out)
    files = {}
    for nfe in shown:
        if nfe < (flow.nfe(SamplerConfig(SOLVER, 1, "uniform")) or 0):
            continue  # the exact steps at the ends take more
        (sampler,) = plan_sweep(flow.sampler, flow.nfe, solvers=[SOLVER], grids=["uniform"], nfes=[nfe])
        samples = flow.sample(flow.modality.shown, cond=cond, **(sampler.arguments() | guided))
        files[str(nfe)] = f"pictures/{name}-{nfe:03d}.png"
        image = flow.modality.plot(samples.x, samples.encoded, behind)
        save_png(image, pictures / Path(files[str(nfe)]).name)
    return files


@dataclass(frozen=True)
class ReflowResult:
    """Flows of a call, the run's included, why the last one stopped, and the report."""

    flows: dict[str, Path]
    reason: str
    report: Path | None


def reflow(run: Path, preset: str, a: ReflowArguments) -> ReflowResult:
    """Make pairs and train on them repeatedly, over all processes; resumable.

    Each flow starts from the averaged weights of the previous one (Liu, Gong & Liu 2023, "Flow straight and fast",
    alg. 1). Raises UserError for unsuitable arguments, and a folder of another call.
    """
    folder = (a.output_dir or run_folder(run) / "reflow").absolute()
    with run_context(a.settings.training.device, run_dir=folder) as context, ExitStack() as claims:
        with sync_errors():
            if context.env.is_first:
                claims.enter_context(claim_folder(folder, "--output-dir"))
            source = build_dataset(a.settings.data)
            place = find_checkpoint(run) if context.env.is_first else run
            if a.measure:  # what would fail after the training fails before it
                check_measure(source, a)
        place, flows, reason = broadcast_object(place), {"1-rectified": run}, "finished"
        rounds = [f"{k + 2}-rectified" for k in range(a.iterations)] + (["distilled"] if a.distill else [])
        for k, name in enumerate(rounds):
            pairs = folder / f"pairs-{k + 1}"
            _make(place, source, pairs, _pairing(a, k, len(source.train)), context)
            config = _config(a, pairs, place, guided=a.guidance != 1, distil=name == "distilled")
            logger.info(f"{name}: learning {pairs}")
            flows[name], reason = train(config, preset, run_dir=folder / name, resume="auto")
            if reason not in ("finished", "max-steps"):
                break
            reason = "finished"
            place = broadcast_object(find_checkpoint(folder / name) if context.env.is_first else place)
        report = None
        if a.measure and reason == "finished":
            report = measure_flows(context, flows, source, a)
        return ReflowResult(flows, reason, report)


def _pairing(a: ReflowArguments, k: int, rows: int) -> PairConfig:
    """Settings of the pairs of round k, with noise unused by evaluations."""
    sampler = SamplerConfig(a.chosen("pair_solver"), a.pair_steps, a.chosen("pair_grid"))
    return PairConfig(
        num_pairs=rows if a.num_pairs is None else a.num_pairs,
        sampler=replace(sampler, guidance=a.guidance, guidance_interval=a.guidance_interval) if k == 0 else sampler,
        real_share=a.real_share,
        store=a.store,
        seed=stream_seed(a.settings.training.seed, Stream.PAIRS, k) >> 33,
    )


def _make(place: Path, source: Dataset, folder: Path, pairing: PairConfig, context: RunContext) -> None:
    """Make pairs by the flow of a checkpoint, unless complete."""
    with sync_errors():
        flow = load(place, device=context.device)
        metadata = read_model_metadata(weight_file(place, ema=True))
        if metadata.fingerprint != source.fingerprint:
            raise UserError(f"the data of {place} have changed since it was trained; give the data it was trained on")
    if not (folder / FACTS).is_file():
        logger.info(f"making {pairing.num_pairs:,} pairs in {folder}")
    made_by = weights_identity(place, True)
    make_pairs(flow, metadata.noise, source, folder, pairing, made_by=made_by)


def _config(a: ReflowArguments, pairs: Path, place: Path, *, guided: bool, distil: bool) -> Config:
    config = a.settings
    method, output = config.method, config.output
    if guided:  # a pair that was made for a label is none of no label
        method = method.replaced(label_dropout=0.0)
    if distil:
        method = method.replaced(times="start", loss_space="same", weight="uniform", t_eps=1e-3)
        output = output.replaced(solver="euler", sample_steps=1, grid="uniform")
    training = replace(config.training, init_from=place, pairs=pairs)
    return replace(config, method=method, training=training, output=output)
