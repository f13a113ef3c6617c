"""Faces at 64 pixels, or any other images."""

from advect.runs.config import Config, MethodConfig, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.image_config import ImageFolderData

PRESET = Preset(
    "celeba64",
    "64x64 colour images: CelebA in its official layout, or any folder (--data-dir): for a GPU",
    Config(
        data=ImageFolderData(),
        network=UNetConfig(),
        method=MethodConfig(sigma_min=1e-4),
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
    takes=("image-folder", "celeba", "packed", "shards", "parquet-images", "hub-images"),
)
