"""The configuration of a run: sections of plain values and parts, each a flag of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from advect.config.data import DataConfig as DataConfig
from advect.config.section import Section, part
from advect.core.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkConfig(Section):
    """The network."""

    network: str = part("network", default="unet", prefix="")
    """Kind of network; one that is not the preset's own comes with its own defaults, and its own flags."""

    usual = frozenset({"network"})


def network(name: str, **options: Any) -> NetworkConfig:
    """The network ``name`` with those arguments of its constructor that are not the default."""
    return NetworkConfig(network=name, options=options)


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodConfig(Section):
    """What is learned: objective, path, source, coupling, times, weights and conditions."""

    objective: str = part("loss", default="flow-matching")
    """What is minimised."""
    path: str = part("path", default="cond-ot")
    """How noise becomes data."""
    sigma_min: float = 0.0
    """Standard deviation of extra noise on the path; with lipman-ot and bridge their own sigma."""
    source: str = part("source", default="gaussian")
    """Where the flow starts."""
    coupling: str = part("coupling", default="independent")
    """Which noise goes to which data of a batch."""
    times: str = part("times", default="stratified")
    """Which times are trained on."""
    weight: str = part("weight", default="uniform")
    """Weight of time in the loss."""
    prediction: Literal["velocity", "data", "noise", "score"] = "velocity"
    """What the network's output means; sampling converts it."""
    loss: Literal["same", "velocity", "data", "noise", "score"] = "same"
    """The space of the loss; same is that of the prediction."""
    penalty: Literal["squared", "pseudo-huber"] = "squared"
    """What a sample pays for its residual; pseudo-huber, for reflow's pairs, is its norm where it is not tiny."""
    margin: float = 1e-3
    """How far t stays from 0 and 1 where a conversion or the path itself is infinite there; 0.05 steadies --prediction
    data with --loss velocity.
    """
    label_dropout: float | None = None
    """Share of samples trained without their conditions, for guidance; of several, each is dropped in this share on
    its own as well, so that any may be left out; by default 0.1 where the data have some.
    """

    usual = frozenset({"path", "source", "coupling", "times", "prediction", "label_dropout"})
    _at_least = (("sigma_min", 0), ("margin", 0))
    _below_one = ("label_dropout",)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingConfig(Section):
    """Optimisation."""

    batch_size: int = 128
    """Samples a step, on each process."""
    init_from: Path | None = None
    """Begin with the averaged weights of this run, checkpoint or weight file, whose network is the same."""
    pairs: Path | None = None
    """Learn the pairs of noise and samples in this folder, which advect reflow makes, instead of the data."""

    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How several processes share the network. ddp: each has all of it. fsdp: each keeps a part of weights, moments
    and averages, for networks too large for one device. auto: none for one process; ddp, or fsdp where ddp would fill
    half of a GPU's memory.
    """
    num_epochs: int = 100
    """Passes over the data: the length of the run, and of a cosine schedule."""
    max_steps: int | None = None
    """Stop after this many steps in all, if the epochs have not ended; the schedule stays that of the epochs."""
    max_minutes: float | None = None
    """Stop this start of the run after so many minutes; the schedule stays that of the epochs."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: orthogonal steps for the matrices of hidden layers, and AdamW for all else."""
    learning_rate: float = 2e-4
    """Peak learning rate; that of AdamW suits muon too."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up."""
    lr_warmup_steps: int = 1000
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    use_ema: bool = True
    """Keep an exponential moving average of the weights and sample with it."""
    ema_decay: float = 0.9999
    """Decay of that average; it is warmed up."""
    ema_also: tuple[float, ...] = ()
    """Decays of further averages, kept beside it; `advect sample RUN --ema-decay` takes one of them."""

    posthoc_ema: bool = False
    """Store averages by a power of time (Karras et al. 2024), from which `advect ema RUN` rebuilds one of any length
    after the run: 16 to 31 snapshots in RUN/ema, each of 4 bytes a parameter for each of --posthoc-lengths.
    """
    posthoc_lengths: tuple[float, ...] = (0.05, 0.1)
    """Their lengths, standard deviations in time as shares of the run; each is kept in memory as well."""
    posthoc_every: int | None = None
    """Steps between two snapshots, all of which are kept; by default they are thinned out as the run grows."""

    mixed_precision: bool = False
    """Run the network in a 16-bit type where the device is faster in one; weights and optimiser stay in float32."""
    half: Literal["auto", "bf16", "fp16"] = "auto"
    """That type: bf16, fp16 with a loss scale, or what suits the device; on a CPU without bf16, auto stays in fp32."""
    deterministic: bool = False
    """Same bits each time on a GPU too, from slower kernels; a CPU's are so already."""
    tf32: bool = True
    """Let a GPU multiply float32 with 10 bits of mantissa."""
    max_bad_steps: int = 10
    """After so many steps in a row that are not finite, go back to a checkpoint with a lower rate, once; then stop."""
    accumulate: int = 1
    """Compute each batch in so many parts, one after the other: the same step in less memory."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more arithmetic."""
    compile_model: bool = False
    """Compile the network with torch.compile."""
    pair_ahead: bool = False
    """Draw and pair the next step's noise in a thread while this one computes; for --coupling ot and its kin."""
    num_workers: int = 0
    """Threads that prepare batches ahead."""
    seed: int = 0
    """Seed of the network's start, the data's order, the noise, the times and the dropout."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""

    usual = frozenset(
        {
            "batch_size",
            "num_epochs",
            "max_steps",
            "max_minutes",
            "optimizer",
            "learning_rate",
            "mixed_precision",
            "seed",
            "device",
        }
    )
    _at_least = (
        ("batch_size", 1),
        ("num_epochs", 1),
        ("max_steps", 1),
        ("lr_warmup_steps", 0),
        ("weight_decay", 0),
        ("grad_clip", 0),
        ("max_bad_steps", 1),
        ("accumulate", 1),
        ("num_workers", 0),
        ("posthoc_every", 1),
    )
    _above = (("learning_rate", 0), ("max_minutes", 0), ("posthoc_lengths", 0))
    _below_one = ("ema_decay", "ema_also", "posthoc_lengths")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("init_from", "pairs"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, place.expanduser().absolute())
        lengths = type(self).posthoc_lengths
        if not self.posthoc_ema and (self.posthoc_every is not None or self.posthoc_lengths != lengths):
            raise UserError("--posthoc-every and --posthoc-lengths do nothing without --posthoc-ema; give it, too")
        if not self.use_ema and (self.ema_also or self.posthoc_ema):
            raise UserError("--no-use-ema contradicts --ema-also and --posthoc-ema; leave it out")
        if len({self.ema_decay, *self.ema_also}) <= len(self.ema_also):
            raise UserError(f"--ema-also {_words(self.ema_also)} names a decay twice, or --ema-decay {self.ema_decay}")
        if not self.posthoc_lengths or len(set(self.posthoc_lengths)) < len(self.posthoc_lengths):
            raise UserError(
                f"--posthoc-lengths needs different lengths, such as 0.05 0.1, got {_words(self.posthoc_lengths)}"
            )


def _words(values: tuple[float, ...]) -> str:
    return " ".join(map(str, values))


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputConfig(Section):
    """What the run writes, and when."""

    log_every: int = 50
    """Steps between two rows of metrics.jsonl."""
    sample_every: int = 1000
    """Steps between two sample grids, with the held-out loss; 0 for none."""
    save_every: int = 1000
    """Steps between two checkpoints; 0 for none but those at epochs and at the end."""
    save_epochs: int = 1
    """A checkpoint after every so many epochs; 0 for none."""
    keep_last: int = 3
    """How many of the newest checkpoints are kept; 0 keeps all."""
    keep_every: int = 0
    """Keep those of each so many steps, too; 0 for none."""
    num_samples: int = 64
    """Samples in a grid."""
    sample_steps: int = 50
    """Solver steps for a grid."""
    solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m"] = "midpoint"
    """Solver for a grid, and the default of advect sample."""
    grid: Literal["uniform", "cosine", "edm", "shifted"] = "uniform"
    """Where the solver's steps lie: evenly; dense at both ends; as EDM's noise levels; more near the noise."""
    eval_every: int = 0
    """Steps between two measurements of samples against held-out data; 0 for none."""
    eval_samples: int = 2000
    """Samples of a measurement; as many training samples give the floor."""
    eval_features: Path | None = None
    """File of a network in whose features images are compared, such as the FID Inception; by default pixels."""

    keep_best: Literal["auto", "frechet", "kernel", "energy", "held-out-loss"] | None = "auto"
    """With --eval-every, keep the checkpoint where this is smallest; checkpoints/best names it. auto: frechet for
    images, which have kernel too, and energy for all else, of which it sees more than means and covariances.
    """

    wandb: Literal["none", "online", "offline"] = "none"
    """Curves and sample grids on Weights & Biases; offline writes them to RUN/wandb for a later wandb sync."""
    wandb_project: str | None = None
    """Project on Weights & Biases; by default advect."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wandb == "none" and self.wandb_project is not None:
            raise UserError(
                f"--wandb-project {self.wandb_project} does nothing with --wandb none; give --wandb online or offline,"
                " or --wandb-project None"
            )
        if self.eval_features is not None:
            object.__setattr__(self, "eval_features", self.eval_features.expanduser().absolute())
        for name in ("eval_samples", "eval_features", "keep_best"):
            value = getattr(self, name)
            if not self.eval_every and value is not None and value != getattr(type(self), name):
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} {value} does nothing without --eval-every; give it, too, such as 1000")

    usual = frozenset({"sample_every", "save_every", "num_samples", "solver", "eval_every"})
    _at_least = (
        ("log_every", 1),
        ("sample_every", 0),
        ("save_every", 0),
        ("save_epochs", 0),
        ("keep_last", 0),
        ("keep_every", 0),
        ("num_samples", 1),
        ("sample_steps", 1),
        ("eval_every", 0),
        ("eval_samples", 20),
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that determines a run, but the place where it is written."""

    data: DataConfig
    network: NetworkConfig
    method: MethodConfig = field(default_factory=MethodConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class Preset:
    """A named starting point: what it trains on and with, and one line about it.

    ``takes`` names the formats of data that it trains on, none where it brings its own data;
    ``fit`` is the configuration for images of a height and a width, where that depends on them.
    """

    name: str
    about: str
    config: Config
    takes: tuple[str, ...] = ()
    fit: Callable[[Config, int, int], Config] | None = None
