"""Letters and figures in the fonts that matplotlib bundles: 62 classes, jittered."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bench.quality.tasks.images import SIZE, Jitter, image_task
from bench.quality.tasks.task import Task

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
JITTER = Jitter(rotation=12, scale=0.12, shift=1.0, noise=0.2)
CALIBRATION = 992  # 16 a class on average
OVERSIZE = 4  # rendered that many times larger, then averaged


@cache
def glyphs() -> Task:
    """62 classes, one image for each of 21 fonts; the test jitters them anew."""
    x, y = rendered()
    return image_task("glyphs", (x, y), (x, y), JITTER, CALIBRATION)


def rendered() -> tuple[Tensor, Tensor]:
    """Clean images [fonts · 62, 1, 16, 16] in −1 … 1 and classes."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    side = SIZE * OVERSIZE
    images, labels = [], []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), int(0.8 * side))
        for label, character in enumerate(CLASSES):
            image = Image.new("L", (side, side))
            ImageDraw.Draw(image).text((side / 2, 0.78 * side), character, fill=255, font=font, anchor="ms")
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float().view(1, side, side)
            images.append(torch.nn.functional.avg_pool2d(pixels, OVERSIZE) / 127.5 - 1)
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)
