"""From the training section of a configuration to the engine: state and trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.group import current
from advect.core.platform import be_deterministic, use_tf32
from advect.core.random import mix
from advect.core.types import DataSpec
from advect.data import Split
from advect.objectives import Objective
from advect.runs.build import build_network, pick_device, pick_precision
from advect.runs.config import MethodConfig, TrainingConfig
from advect.runs.network_config import NetworkConfig
from advect.training import (
    AdamW,
    Ema,
    Hook,
    LearningRate,
    Limits,
    Loader,
    Muon,
    Trainer,
    TrainState,
    hidden_matrices,
    named_params,
)
from advect.training.flops import on_meta
from advect.training.parallel import Parallel, local


def check_method(method: MethodConfig, t: TrainingConfig) -> None:
    """Raise UserError where the method and the way to train contradict each other."""
    for flag, asked in (("--pair-ahead", t.pair_ahead), ("--accumulate", t.accumulate > 1)):
        if asked and method.times == "importance":
            raise UserError(f"{flag} and --times importance contradict each other: times are learned from whole steps")


def new_state(
    network: NetworkConfig,
    t: TrainingConfig,
    spec: DataSpec,
    objective: Objective,
    *,
    weights: Mapping[str, Tensor] | None = None,
    **kept,
) -> TrainState:
    """A state at its first step, on the device of ``t``, from ``weights`` or else from its seed.

    ``kept`` goes into it as it is. The processes that have joined share its network as ``t`` says.
    """
    device = pick_device(t.device)
    if t.deterministic:
        be_deterministic(device)
    with torch.random.fork_rng():
        torch.manual_seed(mix(t.seed, 0))
        net = build_network(network, spec, grad_checkpointing=t.grad_checkpointing)
    if weights is not None:
        net.load_state_dict(weights)
    parallel, twin = Parallel.choose(t.parallel, net, device), on_meta(net)
    net = parallel.place(net, device, pick_precision(t.mixed_precision, device, t.half))
    params = named_params(net)
    if t.optimizer == "muon":
        optimizer = Muon(params, hidden_matrices(net), weight_decay=t.weight_decay)
    else:
        optimizer = AdamW(params, weight_decay=t.weight_decay)
    lengths, parts = t.posthoc_lengths if t.posthoc_ema else (), {name: local(p) for name, p in params.items()}
    ema = Ema(parts, t.ema_decay, also=t.ema_also, lengths=lengths) if t.use_ema else None
    return TrainState(net, optimizer, ema, extra=objective, parallel=parallel, twin=twin, **kept)


def new_trainer(
    t: TrainingConfig,
    state: TrainState,
    objective: Objective,
    split: Split,
    *,
    rate: LearningRate,
    limits: Limits,
    log_every: int,
    hooks: Sequence[Hook],
) -> Trainer:
    """A trainer of ``state`` on ``split``; nothing is written until it runs."""
    device = pick_device(t.device)
    use_tf32(device, t.tf32)
    return Trainer(
        state,
        objective,
        Loader(split, t.batch_size, seed=t.seed, workers=t.num_workers, rank=current().rank, world=current().world),
        rate=rate,
        limits=limits,
        grad_clip=t.grad_clip,
        autocast=pick_precision(t.mixed_precision, device, t.half),
        accumulate=t.accumulate,
        compile_model=t.compile_model,
        pair_ahead=t.pair_ahead,
        max_bad_steps=t.max_bad_steps,
        seed=t.seed,
        log_every=log_every,
        device=device,
        hooks=hooks,
    )
