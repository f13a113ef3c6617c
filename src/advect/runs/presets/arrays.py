"""Vectors of one's own."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig
from advect.runs.data_config import ArrayFileData
from advect.runs.network_config import ResidualMLPConfig

PRESET = Preset(
    "arrays",
    "vectors of your own from a .npy, .npz or Parquet file (--data-dir), a residual MLP",
    Config(
        data=ArrayFileData(),
        network=ResidualMLPConfig(width=256),
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
