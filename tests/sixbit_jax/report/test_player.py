"""The player of videos: what the page holds, and what a real browser does with it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sixbit_jax.report import html, player

_CAPTION = "a <b>red</b> ball </script><script>document.title='broken'</script>"
# Sent to the page as keys; what it shows afterwards is written into the page.
_ASK = """
<script>
addEventListener("load", () => setTimeout(function () {
  const section = document.querySelector("section.player");
  const seen = [];
  const note = () => seen.push([section.dataset.frame, section.dataset.step,
    section.dataset.playing, section.dataset.difference].join());
  const press = (key) => section.dispatchEvent(
    new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  const pixel = (canvas) => Array.from(
    canvas.getContext("2d").getImageData(0, 0, 1, 1).data).join();
  note();
  for (const key of ["ArrowRight", "ArrowLeft", "ArrowLeft", "]", "d"]) {
    press(key);
    note();
  }
  const canvases = section.querySelectorAll("canvas");
  seen.push("pixels " + [0, 1, 2].map((i) => pixel(canvases[i])).join("/"));
  seen.push("caption " + section.querySelector("h3").textContent);
  press(" ");
  setTimeout(function () {
    seen.push("moved " + (Number(section.dataset.frame) !== 3));
    note();
    press(" ");
    note();
    const result = document.createElement("pre");
    result.id = "seen";
    result.textContent = JSON.stringify(seen);
    document.body.appendChild(result);
  }, 700);
}, 300));
</script>
"""


def videos() -> list[player.Shown]:
    """Two videos of four flat frames, the second brighter by one."""
    first = np.repeat(np.arange(4, dtype=np.uint8) * 20, 8 * 8 * 3)
    first = first.reshape(4, 8, 8, 3)
    routes = np.arange(12, dtype=np.int64).reshape(3, 4) % 2
    return [player.Shown("full", first), player.Shown("6 bits", first + 1, routes)]


def page() -> str:
    made = html.Page("Two videos")
    made.player(
        _CAPTION, videos(), fps=8, colours=["#112233", "#445566"], names=["A", "B"]
    )
    return made.render()


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium is installed")
    return found


def test_a_caption_cannot_leave_the_data():
    data = re.search(
        r'<script type="application/json">(.*?)</script>', page(), re.DOTALL
    )
    assert data is not None
    assert json.loads(data.group(1))["caption"] == _CAPTION


def test_a_page_loads_nothing_from_elsewhere():
    text = page()
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "http://" not in text
    assert "https://" not in text


def test_a_page_without_a_player_has_no_script():
    assert "<script" not in html.Page("plain").render()
    assert "script-src" not in html.Page("plain").render()


def test_videos_of_different_sizes_are_refused():
    first, second = videos()
    longer = player.Shown("longer", np.repeat(second.frames, 2, axis=0))
    with pytest.raises(ValueError, match="one size"):
        player.fragment("", [first, longer], fps=8)
    with pytest.raises(ValueError, match="none"):
        player.fragment("", [], fps=8)


def test_a_browser_plays_steps_and_compares_by_keyboard(tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text(page().replace("</body>", _ASK + "</body>"), encoding="utf-8")
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=6000", "--dump-dom", file.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    assert "<title>Two videos</title>" in done.stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    seen = json.loads(
        found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    # frame, denoising step, playing, difference
    assert seen[:6] == [
        "0,0,false,false",
        "1,1,false,false",
        "0,0,false,false",
        "3,3,false,false",
        "3,3,false,false",
        "3,3,false,true",
    ]
    # Frame 3 of both, and four times their difference.
    assert seen[6] == "pixels 60,60,60,255/61,61,61,255/4,4,4,255"
    assert seen[7] == f"caption {_CAPTION}"
    assert seen[8] == "moved true"
    assert seen[9].split(",")[2] == "true"
    assert seen[10].split(",")[2] == "false"
