"""Sequences of one's own."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig
from advect.runs.data_config import SequencesData
from advect.runs.network_config import SequenceTransformerConfig

PRESET = Preset(
    "sequences",
    "sequences (N, L, C), or of many lengths, or a table of one row a step (--data-dir), a transformer",
    Config(
        data=SequencesData(),
        network=SequenceTransformerConfig(width=128, depth=4),
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
