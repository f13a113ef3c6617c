"""Fashion-MNIST from its upstream IDX files."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.image_config import FashionMnistData

PRESET = Preset(
    "fashion-mnist",
    "28x28 grey pictures of clothes by class, from the upstream IDX files in --data-dir",
    Config(
        data=FashionMnistData(),
        network=UNetConfig(
            model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(7,), dropout=0.1
        ),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=30,
            learning_rate=5e-4,
            lr_schedule="cosine",
            lr_warmup_steps=500,
            ema_decay=0.999,
        ),
        output=OutputConfig(log_every=20, sample_every=500, save_every=500),
    ),
    takes=("fashion-mnist",),
)
