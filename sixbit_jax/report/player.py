"""Videos side by side that play in step, as a part of a page that needs no network.

Frames are embedded losslessly, one below the other in one PNG per video, and drawn by a
script: what is compared is what was made, and all videos show the same frame at every
moment. Beside them stand the routes of every denoising step, with a line that follows.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

_SCRIPT = Path(__file__).with_name("player.js")
STYLE = """
.player { border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem;
          margin: 1rem 0; }
.player:focus-within { border-color: #3060c0; }
.player .row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.player figure { margin: .4rem 0; }
.player canvas { image-rendering: pixelated; display: block; }
.player .controls { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center;
                    margin: .5rem 0; }
.player .controls input[type=range] { flex: 1 1 12rem; }
.player p.keys { color: #666; font-size: .85rem; margin: .2rem 0 0; }
"""


@dataclass(frozen=True)
class Shown:
    """One video of a player.

    Attributes:
      name: of its configuration.
      frames: RGB bytes.
      routes: what every site and block did in every denoising step, values as in
        `plots.route_cells` of one guidance branch; None where there is no trace.
    """

    name: str
    frames: UInt8[np.ndarray, "frames height width 3"]
    routes: Int[np.ndarray, "rows steps"] | None = None


def fragment(
    caption: str,
    videos: Sequence[Shown],
    *,
    fps: int,
    colours: Sequence[str] = (),
    names: Sequence[str] = (),
) -> str:
    """The HTML of one player; the page needs `script()` once, after all of them.

    Args:
      caption: shown as text above the videos, whatever it contains.
      videos: of one size; the first is the reference of the difference view.
      fps: frames per second.
      colours: CSS colours of the values of `Shown.routes`.
      names: what those values mean.

    Raises:
      ValueError: no videos, or videos of different sizes.
    """
    shapes = {video.frames.shape for video in videos}
    if len(shapes) != 1:
        raise ValueError(
            f"player: expected videos of one size, found {sorted(shapes) or 'none'}"
        )
    ((count, height, width, _),) = shapes
    data = {
        "caption": caption,
        "fps": fps,
        "frames": count,
        "height": height,
        "width": width,
        "colours": list(colours),
        "names": list(names),
        "videos": [
            {
                "name": video.name,
                "strip": _png(video.frames.reshape(count * height, width, 3)),
                "routes": None if video.routes is None else video.routes.tolist(),
            }
            for video in videos
        ],
    }
    # No sequence of characters may end the element that holds the data.
    text = json.dumps(data).replace("<", "\\u003c")
    return (
        '<section class="player" tabindex="0">'
        f'<script type="application/json">{text}</script></section>'
    )


def script() -> str:
    """The script that makes players of the fragments before it."""
    return f"<script>\n{_SCRIPT.read_text(encoding='utf-8')}</script>"


def _png(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
