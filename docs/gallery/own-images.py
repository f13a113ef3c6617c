# %% [markdown]
# # Images of your own
#
# A folder of pictures, whose sub-folders are classes. Here we draw them; put yours in its place.

# %%
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

from advect.cli import run

rng = np.random.default_rng(0)
for i in range(600):
    kind = ("disc", "square")[i % 2]
    picture = Image.new("RGB", (32, 32), (245, 240, 230))
    x, y, size = rng.integers(4, 12), rng.integers(4, 12), rng.integers(10, 17)
    colour = tuple(int(c) for c in rng.integers(20, 200, 3))
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if kind == "disc" else pen.rectangle)((x, y, x + size, y + size), fill=colour)
    Path("shapes", kind).mkdir(parents=True, exist_ok=True)
    picture.save(f"shapes/{kind}/{i}.png")

# %% [markdown]
# The format is detected; `--model-channels` makes the network small.

# %%
run(
    shlex.split(
        "train --data shapes --image-size 16 --model-channels 32 --max-steps 200 --batch-size 32 "
        "--sample-every 0 --run-dir runs/shapes"
    )
)
run(shlex.split("sample runs/shapes --num-samples 40 --cond label=cycle --num-steps 20 --output-dir new"))

# %%
figure, axis = plt.subplots(figsize=(6, 4))
axis.imshow(Image.open("new/samples.png"))
axis.set_title("new shapes")
axis.axis("off")
