"""Presets for vectors, tables, cells and sequences."""

from advect.config.config import Config, OutputConfig, Preset, TrainingConfig, network
from advect.config.data import data

MOONS = Preset(
    "moons",
    "two half moons in the plane, a small MLP: seconds",
    Config(
        data=data("moons"),
        network=network("mlp", width=256, depth=4),
        training=TrainingConfig(
            batch_size=256,
            num_epochs=100,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.999,
        ),
        output=OutputConfig(
            log_every=100, sample_every=1000, save_every=2000, save_epochs=50, num_samples=2000, sample_steps=25
        ),
    ),
)


ARRAYS = Preset(
    "arrays",
    "vectors of your own from a .npy, .npz or Parquet file (--data-dir), a residual MLP",
    Config(
        data=data("array-file"),
        network=network("resmlp", width=256),
        training=TrainingConfig(
            batch_size=256,
            num_epochs=200,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=200,
            ema_decay=0.999,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=1000, save_epochs=50, num_samples=1000),
    ),
    takes=("array-file",),
)


TABLE = Preset(
    "table",
    "a CSV or Parquet table of any column types (--data-dir), a residual MLP",
    Config(
        data=data("table"),
        network=network("resmlp", width=256),
        training=TrainingConfig(
            batch_size=256,
            num_epochs=1000,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.999,
        ),
        output=OutputConfig(
            log_every=50, sample_every=1000, save_every=1000, save_epochs=50, num_samples=1000, sample_steps=25
        ),
    ),
    takes=("table",),
)


CELLS = Preset(
    "cells",
    "single cells from an .h5ad file (--data-dir): genes or components, by columns of obs, a residual MLP",
    # Found by experiment, docs/experiments/cells.md: without dropout the held-out loss rises after 150 epochs.
    Config(
        data=data("cells"),
        network=network("resmlp", width=256, depth=3, dropout=0.1),
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


SEQUENCES = Preset(
    "sequences",
    "sequences (N, L, C), or of many lengths, or a table of one row a step (--data-dir), a transformer",
    Config(
        data=data("sequences"),
        network=network("transformer", width=128, depth=4),
        training=TrainingConfig(
            batch_size=64,
            num_epochs=200,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=200,
            ema_decay=0.999,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=1000, save_epochs=50, num_samples=64),
    ),
    takes=("sequences",),
)
