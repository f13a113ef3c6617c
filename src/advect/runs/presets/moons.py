"""Two half moons in the plane: the quickest look at a flow."""

from advect.runs.config import Config, MLPConfig, OutputConfig, Preset, TrainingConfig
from advect.runs.data_config import MoonsData

PRESET = Preset(
    "moons",
    "two half moons in the plane, a small MLP: seconds",
    Config(
        data=MoonsData(),
        network=MLPConfig(width=256, depth=4),
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
