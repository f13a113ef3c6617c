"""Construction of training state, trainer and callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advect.checkpoint.async_writer import CheckpointWriter
from advect.config.build import (
    build_dataset,
    build_loss,
    build_network,
    build_path,
    build_times,
    build_weight,
    fit_source,
    source_tensors,
)
from advect.config.config import HELD_OUT_LOSS, Config, MethodConfig, NetworkConfig, TrainingConfig
from advect.config.plan import EVALUATIONS, Plan
from advect.core import registry
from advect.core.device import pick_precision
from advect.core.errors import UserError
from advect.core.memory import BATCH_COPIES, check_memory
from advect.core.random import Stream, stream_seed
from advect.core.types import DataSpec
from advect.data import Dataset, Split
from advect.distributed.comm import current
from advect.distributed.context import RunContext
from advect.distributed.parallel import Parallel, local
from advect.losses import Loss
from advect.model.flow import Flow
from advect.networks.encoders import Encoder
from advect.reporting.sample_grids import SampleGridCallback
from advect.training import (
    EMA,
    Callback,
    LearningRate,
    Loader,
    Optimizer,
    StopCriteria,
    Trainer,
    TrainState,
    hidden_matrices,
    named_params,
)
from advect.training.callbacks import CheckpointCallback, Forecast, MetricsFile, ProgressBar
from advect.training.loggers import Logger, SparedLogger, TensorBoardLogger, WandbLogger
from advect.training.state import on_meta


def check_method(method: MethodConfig, t: TrainingConfig) -> None:
    """Raise UserError if method and training contradict each other."""
    if method.sigma_min == 0 and method.part("path").width is not None:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"--path {method.path} has a width, and --sigma-min is 0; leave that out for the path's own width, or take"
            " --path cond-ot"
        )
    for flag, asked in (("--pair-ahead", t.pair_ahead), ("--accumulate", t.accumulate > 1)):
        if asked and method.times == "importance":
            raise UserError(f"{flag} and --times importance contradict each other: times are learned from whole steps")


def check_config(config: Config) -> None:
    """Raise UserError for a value that a part or the network refuses; write nothing.

    Data that are not there yet are left out, and the network is tried on a shape that they may have.
    """
    method, t, place = config.method, config.training, config.data.data_dir
    check_method(method, t)
    _ = build_optimizer(t, skip_init(nn.Linear, 1, 1)), t.build("lr_schedule")
    solver, _ = config.output.build("solver"), config.output.build("grid")
    if solver.two_times and not method.learns_steps:
        raise UserError(
            f"--solver {config.output.solver} takes steps that --objective {method.objective} does not learn; give "
            "--objective lagrangian, say, or take midpoint"
        )
    if solver.jumps != method.discrete:
        usual = "tau-leaping" if method.discrete else "midpoint"
        raise UserError(
            f"--solver {config.output.solver} and --objective {method.objective} contradict each other; take {usual}"
        )
    dataset = None
    if config.data.dataset.place is None or (place is not None and Path(place).exists()):
        dataset = build_dataset(config.data)
        spec = dataset.spec
        if t.pairs is None:
            build_loss(method, dataset, fit_source(method, dataset), source_tensors(dataset))
    else:
        path = build_path(method)
        space = method.prediction if method.loss_space == "same" else method.loss_space
        build_weight(method, path, space)
        build_times(method)
        method.build("coupling")
        spec = _example_spec(config)
    with torch.device("meta"):
        net = build_network(config.network, spec, grad_checkpointing=t.grad_checkpointing, **method.form)
    if dataset is not None:
        check_sizes(net, dataset, method)


def check_sizes(net: nn.Module, dataset: Dataset, method: MethodConfig) -> None:
    """Raise UserError unless network and source take every shape of the training images."""
    for shape in dataset.train.shapes:
        net.check_size(shape)  # pyright: ignore[reportCallIssue]
    if dataset.train.shapes and method.source != "gaussian":
        raise UserError(f"--source {method.source} has the size of the data, and --bucket-step many; take gaussian")


def _example_spec(config: Config) -> DataSpec:
    """What the network takes, in the image size of the configuration if it has one."""
    modality: Any = registry.get("modality", config.network.part("network").takes)  # pyright: ignore
    side, shape = getattr(config.data, "image_size", None), modality.example_shape
    return DataSpec((*shape[:-2], side, side) if side and len(shape) == 3 else shape, modality.part_name, {})


def new_state(
    context: RunContext,
    network: NetworkConfig,
    t: TrainingConfig,
    spec: DataSpec,
    loss_fn: Loss,
    *,
    weights: Mapping[str, Tensor] | None = None,
    encoders: Mapping[str, Encoder] | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    **options,
) -> TrainState:
    """Initial state on the context's device, from ``weights`` or the seed, of the network or what ``wrap`` makes of
    it; ``options`` are passed to it.

    ``encoders`` are those of conditions, by name.
    """
    device = context.device
    check_training_memory(network, t, spec, device, **loss_fn.form)
    seed = stream_seed(context.seed, Stream.INIT)
    form = {**loss_fn.form, "encoders": encoders}
    net = build_network(network, spec, grad_checkpointing=t.grad_checkpointing, seed=seed, **form)
    if weights is not None:
        net.load_state_dict({**net.state_dict(), **weights})  # what a flow's network lacks starts anew
    net = net if wrap is None else wrap(net)
    parallel, twin = Parallel.choose(t.parallel, net, device), on_meta(net)
    net = parallel.place(net, device, pick_precision(t.mixed_precision, device, t.half))
    params = named_params(net)
    optimizer = build_optimizer(t, net)
    lengths, parts = t.posthoc_lengths if t.posthoc_ema else (), {name: local(p) for name, p in params.items()}
    ema = EMA(parts, t.ema_decay, also=t.ema_also, lengths=lengths) if t.use_ema else None
    return TrainState(net, optimizer, ema, extra=loss_fn, parallel=parallel, twin=twin, **options)


def check_training_memory(
    network: NetworkConfig, t: TrainingConfig, spec: DataSpec, device: torch.device, **form: Any
) -> None:
    """Raise UserError if the weights with their gradients, moments and averages, and a batch, exceed the memory."""
    with torch.device("meta"):
        net = build_network(network, spec, grad_checkpointing=t.grad_checkpointing, **form)
    count = sum(p.numel() for p in net.parameters())
    averages = len(t.ema_also) + 1 + (len(t.posthoc_lengths) if t.posthoc_ema else 0) if t.use_ema else 0
    shards = current().world if Parallel.choose(t.parallel, net, device).kind == "fsdp" else 1
    copies = (4 + averages) / shards
    check_memory(
        f"training a network of {count:,} parameters takes", 4 * count * copies, "take a smaller network", device
    )
    batch = 4 * BATCH_COPIES * (t.batch_size or 1) * math.prod(spec.shape) / t.accumulate
    what = f"a step on batches of {t.batch_size:,} samples of shape {spec.shape} takes" if t.batch_size else "a step"
    check_memory(what, batch, "lower --batch-size or the size of a sample, or raise --accumulate", device)


def build_optimizer(t: TrainingConfig, net: nn.Module) -> Optimizer:
    """Optimiser of the network's parameters. Raises UserError for bad arguments."""
    given = {"params": named_params(net), "hidden": hidden_matrices(net), "weight_decay": t.weight_decay}
    return t.build("optimizer", **given)


def new_trainer(
    context: RunContext,
    t: TrainingConfig,
    state: TrainState,
    loss_fn: Loss,
    split: Split,
    *,
    rate: LearningRate,
    limits: StopCriteria,
    log_every: int | None,
    log_gradients: int = 0,
    callbacks: Sequence[Callback],
) -> Trainer:
    """Trainer of ``state`` on ``split``."""
    device, env = context.device, context.env
    assert t.batch_size is not None  # resolved from the data
    return Trainer(
        state,
        loss_fn,
        Loader(split, t.batch_size, seed=context.seed, workers=t.num_workers, rank=env.rank, world=env.world),
        rate=rate,
        limits=limits,
        grad_clip=t.grad_clip,
        autocast=pick_precision(t.mixed_precision, device, t.half),
        accumulate=t.accumulate,
        tf32=t.tf32,
        deterministic=t.deterministic,
        compile_model=t.compile_model,
        prefetch_coupling=t.pair_ahead,
        max_bad_steps=t.max_bad_steps,
        seed=context.seed,
        log_every=log_every,
        log_gradients=log_gradients,
        device=device,
        callbacks=callbacks,
    )


def build_callbacks(
    context: RunContext, config: Config, flow: Flow, loss_fn: Loss, source: Dataset, plan: Plan
) -> tuple[Callback, ...]:
    """Callbacks of a run, in order; only the first process writes and prints."""
    out, run_dir, first = config.output, context.run_dir, context.env.is_first
    metrics, loggers = MetricsFile(run_dir / "metrics.jsonl"), _loggers(config, run_dir) if first else ()
    watch = SampleGridCallback(
        flow,
        loss_fn,
        source.held_out,
        run_dir / "samples",
        every=out.sample_every,
        samples=out.num_samples,
        seed=context.seed,
        metrics=metrics if first else None,
        loggers=loggers,
    )
    keep = {"keep_last": out.keep_last, "keep_every": out.keep_every, "keep_epochs": out.keep_epochs}
    writer = CheckpointWriter(run_dir / "checkpoints", **keep)
    checkpoints = CheckpointCallback(writer, every=out.save_every, every_epochs=out.save_epochs)
    t = config.training
    snapshots = []
    if t.posthoc_ema:
        from advect.training.posthoc_ema import SNAPSHOTS, Snapshots

        snapshots = [Snapshots(run_dir / SNAPSHOTS, every=t.posthoc_every)]
    quality = []
    if out.eval_every or t.early_stopping == "yes":
        from advect.evaluation.held_out import HeldOutLoss, RunStore, held_out_loss, watched_draws

        store = RunStore(checkpoints, watch.metrics, loggers)
        rows, data = len(source.held_out), {"seed": context.seed, "device": context.device}

        def loss(draws: int) -> float:
            return held_out_loss(flow.output, loss_fn, source.held_out, draws=draws, **data)

        if out.eval_every:
            from advect.evaluation.callback import EvalCallback, online_evaluator

            evaluator = online_evaluator(flow, source.real, samples=out.eval_samples, features=out.eval_features)
            keep = kept_measure(out.keep_best, tuple(evaluator.metrics))
            options = {"every": out.eval_every, "seed": context.seed, "keep": keep}
            quality = [EvalCallback(evaluator, lambda: loss(min(rows, 2048)), store, **options)]
        else:
            draws = watched_draws(source.spec, rows)
            quality = [HeldOutLoss(lambda: loss(draws), store, every=max(1, plan.steps // EVALUATIONS))]
    shared = *snapshots, checkpoints, watch, *quality  # a checkpoint's snapshot is there before it
    forecast = Forecast(plan.needed, early=t.early_stopping == "yes")
    return (metrics, *loggers, ProgressBar(), forecast, *shared) if first else shared


def _loggers(config: Config, run_dir: Path) -> tuple[Logger, ...]:
    out, tensorboard = config.output, SparedLogger(TensorBoardLogger(run_dir / "tensorboard"), "TensorBoard")
    if out.wandb == "none":
        return (tensorboard,)
    project, name = out.wandb_project or "advect", run_dir.resolve().name
    shared = WandbLogger(run_dir / "wandb", mode=out.wandb, project=project, name=name, config=config.to_dict())
    return tensorboard, SparedLogger(shared, "Weights & Biases")


def kept_measure(asked: str | None, measured: tuple[str, ...]) -> str | None:
    """Measure of the best checkpoint, among ``measured``."""
    if asked == "auto":
        return "energy" if "energy" in measured else measured[0]
    if asked not in (None, HELD_OUT_LOSS, *measured):
        raise UserError(f"--keep-best {asked} is not measured of these data; take {' or '.join(measured)}")
    return asked
