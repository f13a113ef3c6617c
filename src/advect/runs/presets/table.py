"""A table of one's own."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig
from advect.runs.data_config import TableData
from advect.runs.network_config import ResidualMLPConfig

PRESET = Preset(
    "table",
    "a CSV or Parquet table of any column types (--data-dir), a residual MLP",
    Config(
        data=TableData(),
        network=ResidualMLPConfig(width=256),
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
