"""CIFAR-10 by class, from upstream's files."""

from dataclasses import replace

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.image_config import CifarData
from advect.runs.presets.images import folded_unet, has_gpu

_FULL = UNetConfig(channel_mult=(1, 2, 2, 2), attention_resolutions=(16,))

PRESET = Preset(
    "cifar10",
    "32x32 colour pictures by class: CIFAR-10 or CIFAR-100, upstream's files in --data-dir; on a CPU --num-epochs 5",
    Config(
        data=CifarData(),
        network=_FULL,
        training=TrainingConfig(
            batch_size=128,
            num_epochs=400,
            optimizer="muon",
            learning_rate=2e-3,
            lr_schedule="cosine",
            lr_warmup_steps=200,
            ema_decay=0.9999,
            mixed_precision=True,
            num_workers=2,
        ),
        output=OutputConfig(
            log_every=50, sample_every=2000, save_every=5000, save_epochs=20, solver="dpmpp2m", sample_steps=20
        ),
    ),
    takes=("cifar",),
    fit=lambda config, height, width: replace(config, network=_FULL if has_gpu() else folded_unet(height, width)),
)
