"""Configuration of a run: sections of plain values and parts, each a flag."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from msgspec import Meta

from advect.checkpoint.manifest import HELD_OUT_LOSS
from advect.config.section import Section, aliased, named, part, plain
from advect.core.bounds import BatchSize, Count, CountOrZero, Seed, Share, Steps
from advect.core.errors import UserError
from advect.data.remote import is_remote

if TYPE_CHECKING:
    from advect.core.types import StepKind
    from advect.data.base import Dataset


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The data."""

    data_format: str = part("data-format", default="digits", prefix="")
    """Format of --data or --data-dir, if ambiguous; such as sequences for a CSV file."""
    data_dir: str | Path | None = None
    """File or folder; for some formats a URL, a pattern, or a name on the hub."""
    drop_copies: bool = False
    """Leave out samples that repeat an earlier one in values and conditions beyond coincidence, and held-out samples
    that repeat one to train on; RUN/copies.csv lists them. All data are read for it.
    """

    augment: str | None = part("augmentation", default=None)
    """Random changes of training images, of which the network is told, so that samples look like unchanged ones; by
    default flip for photographs, geometric for up to 5,000, and none for other images.
    """

    usual = frozenset({"data_dir"})

    def __post_init__(self) -> None:
        """Make paths absolute."""
        super().__post_init__()
        if self.data_dir is None:
            return
        cls, text = self.dataset, str(self.data_dir)
        if cls.place is None:
            raise UserError(f"--data-dir {text} does not go with {self.data_format}, which brings its own data")
        path = Path(text).expanduser().absolute()
        if not cls.remote:
            object.__setattr__(self, "data_dir", path)
        elif not is_remote(text) and (path.exists() or path.suffix in (".tar", ".parquet", ".pq")):
            object.__setattr__(self, "data_dir", str(path))

    @property
    def dataset(self) -> type[Dataset]:
        """Class of the format."""
        return self.part("data_format")

    def values(self) -> dict[str, Any]:
        """All values by name, without data_dir for data that come with a library."""
        found = super().values()
        if self.dataset.place is None:
            del found["data_dir"]
        return found


def data(data_format: str, *, augment: str | None = None, **options: Any) -> DataConfig:
    """Data of a format, with arguments that differ from the defaults."""
    return DataConfig(data_format=data_format, augment=augment, options=options)


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkConfig(Section):
    """The network."""

    network: str = part("network", default="unet", prefix="")
    """Kind of network; one other than the preset's has its own defaults and flags."""

    score_network: Literal["none", "head", "separate"] = "none"
    """What predicts the score, for --objective stochastic-interpolant: a second output of the network, or a second
    network.
    """

    usual = frozenset({"network"})


def network(name: str, **options: Any) -> NetworkConfig:
    """Network ``name`` with arguments that differ from the defaults."""
    return NetworkConfig(network=name, options=options)


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodConfig(Section):
    """What is learned: loss, path, source, coupling, times, weights and conditions."""

    objective: str = part("loss", default="flow-matching")
    """Loss."""
    path: str = part("path", default="cond-ot")
    """Probability path from noise to data."""
    sigma_min: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Standard deviation of extra noise on the path; the sigma of lipman-ot, default 1e-4, and of bridge."""
    source: str = part("source", default="gaussian")
    """Distribution at t = 0."""
    coupling: str = part("coupling", default="independent")
    """Pairing of noise and data in a batch."""
    times: str = part("times", default="stratified")
    """Distribution of training times."""
    weight: str = part("weight", default="uniform")
    """Weight of time in the loss."""
    prediction: Literal["velocity", "data", "noise", "score"] = "velocity"
    """Meaning of the network's output; sampling converts it."""
    loss_space: Literal["same", "velocity", "data", "noise", "score"] = "same"
    """Space of the loss; same as the prediction by default."""
    loss_type: Literal["squared", "pseudo-huber"] = aliased("squared", "penalty")
    """Function of a sample's residual; pseudo-huber, for reflow, is about its norm."""
    t_eps: Annotated[float, Meta(ge=0, lt=0.5)] = aliased(1e-3, "margin")
    """Distance from t = 0 and 1 at which an infinite target, or factor of --loss-space, is cut; 0.05 for --prediction
    data with --loss-space velocity.
    """
    label_dropout: Share | None = None
    """Share of samples trained without conditions, for guidance; each of several is also dropped on its own in this
    share; default 0.1 if the data have conditions.
    """

    mask: str = part("mask", default="none")
    """Entries that the flow is given in training, so that it answers questions: see advect sample --given."""

    usual = frozenset({"path", "source", "coupling", "prediction", "label_dropout", "mask"})

    @property
    def masked(self) -> bool:
        """Whether the flow is given anything."""
        return self.mask != type(self).mask

    @property
    def relative(self) -> bool:
        """Whether samples are learned less the level of what is given."""
        return bool(self.arguments("mask").get("relative"))

    @property
    def learns_steps(self) -> StepKind | None:
        """Steps that the network learns, taking their start and end; None for none."""
        return self.part("objective").learns_steps  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def discrete(self) -> bool:
        """Whether samples are tokens that jump along a mixture path."""
        return self.part("objective").discrete  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def learns_posterior(self) -> bool:
        """Whether the network's output is read by a ``PosteriorHead``."""
        return self.part("objective").learns_posterior  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def form(self) -> dict[str, Any]:
        """What the network takes beside a sample and a time: arguments of ``build_network``."""
        form = {"masked": self.masked, "two_times": self.learns_steps is not None, "tokens": self.discrete}
        return {**form, "posterior": self if self.learns_posterior else None}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingConfig(Section):
    """Optimisation."""

    batch_size: BatchSize | None = None
    """Samples a step and process; by default those of the data's kind, and at most a quarter of the rows."""
    init_from: Path | None = None
    """Start from the averaged weights of this run, checkpoint or weight file, of the same network."""
    pairs: Path | None = None
    """Train on the pairs in this folder, made by advect reflow."""

    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """Parallelism. ddp: replicas. fsdp: shards of weights, moments and averages, for networks too large for one
    device. auto: none for one process, else ddp, or fsdp where ddp would fill half of a GPU's memory.
    """
    num_epochs: Annotated[float, Meta(gt=0, le=10**9)] | None = None
    """Passes over the data: length of the run, and of a cosine schedule; by default as many as the data need."""
    max_steps: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    """Stop after this many steps in all; the schedule stays that of the epochs."""
    max_minutes: Annotated[float, Meta(gt=0, le=10**7)] | None = None
    """End this start, its schedule included, after so many minutes, or earlier with the epochs."""
    early_stopping: Literal["auto", "yes", "no"] = "auto"
    """Watch the held-out loss, end the run when it no longer falls, and sample from the best checkpoint. auto: for up
    to 20,000 rows of at most 64 numbers, if --num-epochs is open.
    """
    optimizer: str = part("optimizer", default="adamw")
    """Optimiser."""
    learning_rate: Annotated[float, Meta(gt=0, le=1000)] = 2e-4
    """Peak learning rate; AdamW's suits muon too."""
    lr_schedule: str = part("lr-schedule", default="constant")
    """Schedule after the warm-up."""
    lr_warmup_steps: Annotated[int, Meta(ge=0, le=10**12)] | None = None
    """Steps of linear warm-up; by default a twentieth of the run, up to 100."""
    weight_decay: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    """Decoupled weight decay."""
    grad_clip: Annotated[float, Meta(ge=0, le=10**9)] = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    use_ema: bool = True
    """Average the weights (EMA), and sample with the average."""
    ema_decay: Share = 0.9999
    """Decay of the average; warmed up."""
    ema_also: tuple[Share, ...] = ()
    """Decays of further averages, for `advect sample RUN --ema-decay`."""

    posthoc_ema: bool = False
    """Store power-function averages (Karras et al. 2024), from which `advect ema RUN` rebuilds any length: 16 to 31
    snapshots in RUN/ema, each of 4 bytes a parameter for each of --posthoc-lengths.
    """
    posthoc_lengths: tuple[Annotated[float, Meta(gt=0, lt=1)], ...] = (0.05, 0.1)
    """Their lengths, standard deviations in time as shares of the run; each also takes memory."""
    posthoc_every: Count | None = None
    """Steps between snapshots, all kept; by default they are thinned out as the run grows."""

    mixed_precision: bool = False
    """Run the network in a 16-bit type if the device is faster; weights and optimiser stay in float32."""
    half: Literal["auto", "bf16", "fp16"] = "auto"
    """The 16-bit type: bf16, fp16 with loss scaling, or auto; on a CPU without bf16, auto stays in float32."""
    deterministic: bool = False
    """Bitwise reproducible on a GPU, with slower kernels; a CPU always is."""
    tf32: bool = True
    """Multiply float32 as TF32 (10-bit mantissa) on a GPU."""
    max_bad_steps: Count = 10
    """After so many non-finite steps in a row, return once to a checkpoint with a lower rate; then stop."""
    accumulate: BatchSize = 1
    """Compute each batch in so many parts: the same step in less memory."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more arithmetic."""
    compile_model: bool = False
    """Compile the network with torch.compile."""
    pair_ahead: bool = False
    """Draw and pair the next step's noise in a thread; for --coupling ot and similar."""
    num_workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Threads that prepare batches ahead."""
    seed: Seed = 0
    """Seed of weights, data order, noise, times and dropout."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """PyTorch's threads on a CPU; by default the fastest in a short measurement, or OMP_NUM_THREADS. A resumed run
    keeps its number, on which the last bits of sums depend.
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_epochs is not None and self.num_epochs == int(self.num_epochs):
            object.__setattr__(self, "num_epochs", int(self.num_epochs))
        for name in ("init_from", "pairs"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, place.expanduser().absolute())
        lengths = type(self).posthoc_lengths
        if self.batch_size is not None and self.accumulate > self.batch_size:
            raise UserError(
                f"--accumulate {self.accumulate} is more than the samples of a batch, {self.batch_size}; lower it, or"
                " raise --batch-size"
            )
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
    """Outputs of the run."""

    log_every: Count | None = None
    """Steps between rows of metrics.jsonl; by default a few hundred rows, and one at least every ten seconds."""
    log_gradients: CountOrZero = 0
    """Steps between histograms of the gradients by layer, before clipping, in TensorBoard and W&B; 0 for none."""
    sample_every: CountOrZero | None = None
    """Steps between sample grids, with the held-out loss; 0 for none; by default one after 20 seconds, then every
    minute.
    """
    save_every: CountOrZero | None = None
    """Steps between checkpoints; 0 for none but those at epochs and the end; by default every two minutes."""
    save_epochs: CountOrZero = 0
    """Epochs between checkpoints; 0 for none."""
    keep_last: CountOrZero = 3
    """Number of newest checkpoints kept; 0 keeps all."""
    keep_every: CountOrZero = 0
    """Also keep those of every so many steps; 0 for none."""
    keep_epochs: bool = False
    """Also keep all those of epochs (--save-epochs); --checkpoint epoch-50 finds that of epoch 50."""
    num_samples: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Samples in a grid."""
    sample_steps: Steps = 50
    """Solver steps for a grid; an adaptive solver chooses its own."""
    solver: str = part("solver", default="midpoint")
    """Solver for a grid, and the default of advect sample."""
    grid: str = part("grid", default="uniform")
    """Placement of the solver's steps."""
    eval_every: CountOrZero = 0
    """Steps between evaluations of samples against held-out data; 0 for none."""
    eval_samples: Annotated[int, Meta(ge=20, le=10**9)] = 2000
    """Samples of an evaluation, and of training data for the floor."""
    eval_features: str | None = None
    """Features of images, as advect eval --features: file of a network, such as the FID Inception, "learned" (default)
    or "pixels".
    """

    keep_best: str | None = named("metric", "auto", HELD_OUT_LOSS, default="auto")
    """With --eval-every, keep the checkpoint with the smallest value, named by checkpoints/best. auto: frechet for
    images (which also have kernel), else energy, which sees more than means and covariances.
    """

    wandb: Literal["none", "online", "offline"] = "none"
    """Curves and sample grids on Weights & Biases; offline writes to RUN/wandb for wandb sync."""
    wandb_project: str | None = None
    """Project on Weights & Biases; default advect."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wandb == "none" and self.wandb_project is not None:
            raise UserError(
                f"--wandb-project {self.wandb_project} does nothing with --wandb none; give --wandb online or offline,"
                " or --wandb-project None"
            )
        if self.keep_epochs and not self.save_epochs:
            raise UserError("--keep-epochs does nothing with --save-epochs 0; give --save-epochs 1, or leave it out")
        if self.eval_features not in (None, "learned", "pixels"):
            object.__setattr__(self, "eval_features", str(Path(self.eval_features).expanduser().absolute()))
        for name in ("eval_samples", "eval_features", "keep_best"):
            value = getattr(self, name)
            if not self.eval_every and value is not None and value != getattr(type(self), name):
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} {value} does nothing without --eval-every; give it, too, such as 1000")

    usual = frozenset({"sample_every", "save_every", "num_samples", "solver", "eval_every"})


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that determines a run, except its folder."""

    data: DataConfig
    network: NetworkConfig
    method: MethodConfig = field(default_factory=MethodConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        objective, second = self.method.objective, self.network.score_network
        if second == "none" and objective == MethodConfig.objective:
            return
        learns_score = self.method.part("objective").learns_score  # pyright: ignore[reportAttributeAccessIssue]
        if learns_score and second == "none":
            raise UserError(f"--objective {objective} needs --score-network head or separate; give it, too")
        if second != "none" and not learns_score:
            raise UserError(
                f"--score-network {second} does nothing with --objective {objective}; give --objective "
                "stochastic-interpolant"
            )

    def to_dict(self) -> dict[str, dict[str, object]]:
        """The configuration as sections of plain values."""
        sections = {f.name: getattr(self, f.name).values() for f in fields(self)}
        return {key: {name: plain(value) for name, value in values.items()} for key, values in sections.items()}

    def to_yaml(self, preset: str) -> str:
        """The text of ``config.yaml``: the preset that it started from, and every value.

        A file is read by turning it into flags, so that it and the command line have one parser and one set of checks.
        """
        return yaml.safe_dump({"preset": preset, **self.to_dict()}, sort_keys=False)
