"""Images of one's own, of any size."""

from advect.runs.config import Config, OutputConfig, Preset, TrainingConfig, UNetConfig
from advect.runs.image_config import ImageFolderData


def unet_for(height: int, width: int) -> UNetConfig:
    """A U-Net that halves images as often as they allow, down to 4 pixels, with attention from 16 pixels on."""
    small = min(height, width)
    halvings = 0
    while halvings < 3 and height % 2 ** (halvings + 1) == width % 2 ** (halvings + 1) == 0 and small >> halvings >= 8:
        halvings += 1
    heights = [height >> level for level in range(halvings + 1)]
    return UNetConfig(
        model_channels=32 if small <= 16 else 64,
        channel_mult=(1, 2, 2, 4)[: halvings + 1],
        num_res_blocks=1 if small <= 32 else 2,
        attention_resolutions=tuple(size for size in heights[1:] if size <= 16),
        patch_size=2 if small >= 128 and height % 16 == width % 16 == 0 else 1,
    )


PRESET = Preset(
    "images",
    "images of your own: a folder or archive, shards, Parquet, arrays; the U-Net follows their size",
    Config(
        data=ImageFolderData(),
        network=unet_for(64, 64),
        training=TrainingConfig(
            batch_size=64,
            num_epochs=200,
            optimizer="muon",
            learning_rate=1e-3,
            lr_schedule="cosine",
            lr_warmup_steps=500,
            ema_decay=0.9995,
            mixed_precision=True,
            num_workers=2,
        ),
        output=OutputConfig(log_every=50, sample_every=1000, save_every=1000, save_epochs=50),
    ),
    takes=(
        "image-folder",
        "celeba",
        "packed",
        "shards",
        "parquet-images",
        "hub-images",
        "array-file",
        "mnist",
        "cifar",
    ),
    network_for=unet_for,
)
