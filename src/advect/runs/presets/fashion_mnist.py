"""Fashion-MNIST from its upstream IDX files."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.image_config import FashionMnistData

PRESET = Preset(
    "fashion-mnist",
    "28x28 grey pictures of clothes, from the upstream IDX files in --data-dir: six minutes on two CPU cores",
    # Found by experiment, docs/experiments/time-to-quality.md; the epochs are what six minutes allow.
    Config(
        data=FashionMnistData(),
        network=UNetConfig(
            patch_size=2,
            model_channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(),
            dropout=0.0,
        ),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=5,
            optimizer="muon",
            learning_rate=4e-3,
            lr_schedule="cosine",
            lr_warmup_steps=100,
            ema_decay=0.9995,
            mixed_precision=True,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=1000, solver="dpmpp2m", sample_steps=20),
    ),
    takes=("fashion-mnist",),
)
