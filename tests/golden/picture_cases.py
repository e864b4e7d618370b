"""Pictures of many shapes and modes, and what transformers makes of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.golden.weights import random_array

FILE = Path(__file__).parent / "text_encoders" / "pixels.npy"
# Mode, width, height. Odd sizes: the centre lies between pixels.
PICTURES = (
    ("RGB", 64, 40),
    ("RGB", 31, 57),
    ("RGB", 24, 24),
    ("RGB", 301, 17),
    ("RGB", 5, 9),
    ("RGBA", 48, 33),
    ("L", 37, 29),
    ("P", 40, 50),
    ("LA", 26, 80),
)
# Small, so that what is stored is small.
PROCESSOR = {
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 23, "width": 20},
    "resample": 3,
}


def picture(mode: str, width: int, height: int) -> Image.Image:
    """A picture of random 8-bit values."""
    channels = {"RGB": 3, "P": 3, "RGBA": 4, "LA": 2, "L": 1}[mode]
    noise = random_array(f"picture {mode}", (height, width, channels))
    values = np.clip(noise / np.sqrt(3) * 127.5 + 127.5, 0, 255).astype(np.uint8)
    if mode == "P":
        # No palette of Pillow's choice: which colours it takes may change.
        image = Image.fromarray(values[:, :, 0]).copy()
        image.putpalette([(37 * i) % 256 for i in range(768)])
        return image
    return Image.fromarray(values[:, :, 0] if channels == 1 else values)
