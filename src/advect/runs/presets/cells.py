"""Single cells of one's own."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig
from advect.runs.data_config import CellsData
from advect.runs.network_config import ResidualMLPConfig

PRESET = Preset(
    "cells",
    "single cells from an .h5ad file (--data-dir): genes or components, by columns of obs, a residual MLP",
    # Found by experiment, docs/experiments/cells.md: without dropout the held-out loss rises after 150 epochs.
    Config(
        data=CellsData(),
        network=ResidualMLPConfig(width=256, depth=3, dropout=0.1),
        training=TrainingConfig(
            batch_size=256,
            num_epochs=250,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=200,
            ema_decay=0.995,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=1000, save_epochs=50, num_samples=1000),
    ),
    takes=("cells",),
)
