"""Real 8x8 digits that ship inside scikit-learn: minutes on a laptop."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.data_config import DigitsData

PRESET = Preset(
    "digits",
    "8x8 handwritten digits by class, inside scikit-learn: about two minutes on two CPU cores",
    Config(
        data=DigitsData(),
        network=UNetConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
        ),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=250,
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.995,
        ),
        output=OutputConfig(log_every=20, sample_every=500, save_every=500, save_epochs=50, num_samples=100),
    ),
)
