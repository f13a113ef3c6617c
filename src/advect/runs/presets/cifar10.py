"""CIFAR-10 by class, from upstream's files."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.image_config import CifarData

PRESET = Preset(
    "cifar10",
    "32x32 colour pictures by class: CIFAR-10, or CIFAR-100, from upstream's files in --data-dir: for a GPU",
    Config(
        data=CifarData(),
        network=UNetConfig(channel_mult=(1, 2, 2, 2), attention_resolutions=(16,)),
        training=TrainingConfig(
            batch_size=128,
            num_epochs=400,
            optimizer="muon",
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=1000,
            ema_decay=0.9999,
            mixed_precision=True,
            num_workers=2,
        ),
        output=OutputConfig(log_every=50, sample_every=2000, save_every=5000, save_epochs=20),
    ),
    takes=("cifar",),
)
