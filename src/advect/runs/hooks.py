"""What goes on around a run's steps: metrics, boards, checkpoints, pictures and measurements."""

from __future__ import annotations

from pathlib import Path

from advect.core.errors import UserError
from advect.core.group import current
from advect.data import Source
from advect.objectives import Objective
from advect.runs.config import Config
from advect.runs.configfile import to_dict
from advect.runs.flow import Flow
from advect.runs.watch import Watch, held_out_loss
from advect.runs.watch_quality import WatchQuality
from advect.runs.yardstick import Yardstick
from advect.training import Hook
from advect.training.boards import Board, TensorBoard, WeightsAndBiases
from advect.training.hooks import Checkpoints, MetricsFile, ProgressBar
from advect.training.snapshots import SNAPSHOTS, Snapshots
from advect.training.writer import CheckpointWriter


def build_hooks(config: Config, run_dir: Path, flow: Flow, objective: Objective, source: Source) -> tuple[Hook, ...]:
    """The hooks of a run, in their order; only the first process writes and shows."""
    out, first = config.output, current().is_first
    metrics, boards = MetricsFile(run_dir / "metrics.jsonl"), _boards(config, run_dir) if first else ()
    watch = Watch(
        flow,
        objective,
        source.held_out,
        run_dir / "samples",
        every=out.sample_every,
        samples=out.num_samples,
        seed=config.training.seed,
        metrics=metrics if first else None,
        boards=boards,
    )
    writer = CheckpointWriter(run_dir / "checkpoints", keep_last=out.keep_last, keep_every=out.keep_every)
    checkpoints = Checkpoints(writer, every=out.save_every, every_epochs=out.save_epochs)
    t, bar = config.training, ProgressBar()
    snapshots = [Snapshots(run_dir / SNAPSHOTS, every=t.posthoc_every)] if t.posthoc_ema else []
    quality = []
    if out.eval_every:
        options = {"samples": out.eval_samples, "features": out.eval_features, "seed": t.seed}
        yardstick = Yardstick(flow, source.real, **options)
        loss = lambda: held_out_loss(flow, objective, source.held_out, t.seed)
        keep = kept_measure(out.keep_best, yardstick.metrics)
        options = {"every": out.eval_every, "keep": keep, "metrics": watch.metrics, "boards": boards}
        quality = [WatchQuality(yardstick, loss, checkpoints, tell=bar.tell, **options)]
    shared = *snapshots, checkpoints, watch, *quality  # a checkpoint's snapshot is there before it
    return (metrics, *boards, bar, *shared) if first else shared


def _boards(config: Config, run_dir: Path) -> tuple[Board, ...]:
    out, board = config.output, TensorBoard(run_dir / "tensorboard")
    if out.wandb == "none":
        return (board,)
    project, name = out.wandb_project or "advect", run_dir.resolve().name
    shared = WeightsAndBiases(run_dir / "wandb", mode=out.wandb, project=project, name=name, config=to_dict(config))
    return board, shared


def kept_measure(asked: str | None, measured: tuple[str, ...]) -> str | None:
    """The measure of the best checkpoint, of those ``measured``, the first of which does for images."""
    if asked == "auto":
        return "energy" if "energy" in measured else measured[0]
    if asked in ("kernel", "energy") and asked not in measured:
        raise UserError(f"--keep-best {asked} is not measured of these data; take {' or '.join(measured)}")
    return asked
