"""Faces at 64 pixels, or any other folder of images."""

from advect.runs.config import Config, ImageFolderData, MethodConfig, OutputConfig, Preset, TrainingConfig, UNetConfig

PRESET = Preset(
    "celeba64",
    "64x64 colour images from a folder (--data-dir), such as CelebA: for a GPU",
    Config(
        data=ImageFolderData(),
        network=UNetConfig(),
        method=MethodConfig(sigma_min=1e-4, label_dropout=0.0),
        training=TrainingConfig(
            batch_size=32,
            num_epochs=100,
            learning_rate=2e-4,
            lr_schedule="cosine",
            lr_warmup_steps=1000,
            ema_decay=0.9999,
            num_workers=4,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=5000),
    ),
)
