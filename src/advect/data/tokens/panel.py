"""Pictures of text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from advect.core.errors import printable
from advect.data.figure import DATA, SAMPLES, TEXT

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

WIDTH, MARGIN, LINE, SIZE = 1120, 14, 15, 12
ROWS, LINES = 12, 5
"""Most texts in a picture, and lines of each."""


@cache
def _font(bold: bool = False) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSansMono.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, SIZE)


def text_panel(texts: Sequence[str], captions: Sequence[str] = (), reference: Sequence[str] = ()) -> Image.Image:
    """The first ``texts``, a caption before each if there are any, beside the first of ``reference`` texts."""
    columns = [("samples", SAMPLES, texts, captions)] + ([("data", TEXT, reference, ())] if reference else [])
    width = (WIDTH - MARGIN * (len(columns) + 1)) // len(columns)
    letters = max(1, int(width / _font().getlength("m")))
    blocks = [
        [_lines(text, letters, captions[i] if i < len(captions) else "") for i, text in enumerate(some[:ROWS])]
        for _, _, some, captions in columns
    ]
    rows = max(map(len, blocks))
    heights = [max(len(block[i]) if i < len(block) else 0 for block in blocks) for i in range(rows)]
    image = Image.new("RGB", (WIDTH, 3 * MARGIN + LINE + sum(h * LINE + MARGIN // 2 for h in heights)), "white")
    draw = ImageDraw.Draw(image)
    for k, ((title, colour, _, _), block) in enumerate(zip(columns, blocks, strict=True)):
        left, top = MARGIN + k * (width + MARGIN), MARGIN
        draw.text((left, top), title, colour, _font(bold=True))
        top += LINE + MARGIN // 2
        for lines, height in zip(block, heights, strict=False):
            draw.line([(left, top - 3), (left + width, top - 3)], DATA)
            for i, line in enumerate(lines):
                draw.text((left, top + i * LINE), line, TEXT, _font())
            top += height * LINE + MARGIN // 2
    return image


def _lines(text: str, letters: int, caption: str) -> list[str]:
    """A text in at most so many lines of so many letters, what is left told by "..."."""
    whole = f"[{caption}] {text}" if caption else text
    parts = [printable(line) for line in whole.split("\n")]
    lines = [line[i : i + letters] or "" for line in parts for i in range(0, max(len(line), 1), letters)]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], lines[LINES - 1][: letters - 1] + "…"]
    return lines
