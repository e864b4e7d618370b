"""One HTML page with everything in it: no files besides it, nothing from a network."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from sixbit_jax.report import player

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #202020; background: #fff;
       max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
table.facts td { text-align: left; vertical-align: top; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #666; font-size: .9rem; }
"""


class Page:
    """Collects the parts of a page in the order of the calls."""

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []
        self._players = 0

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Adds a paragraph of plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table; the first column names the row."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        self._parts.append(
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
        )

    def facts(self, name: str, values: Mapping[str, Any]) -> None:
        """Adds a section of names and values; nested ones are indented by a dot."""
        self.heading(name)
        rows = "\n".join(
            f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>"
            for key, value in _flat(values)
        )
        self._parts.append(f'<table class="facts"><tbody>\n{rows}\n</tbody></table>')

    def picture(self, data: bytes, kind: str, caption: str) -> None:
        """Adds a picture, embedded.

        Args:
          data: the file.
          kind: "png" or "gif".
          caption: what it shows; also its text for those who do not see it.
        """
        text = html.escape(caption)
        code = base64.b64encode(data).decode("ascii")
        self._parts.append(
            f'<figure><img alt="{text}" src="data:image/{kind};base64,{code}">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def player(
        self, caption: str, videos: Sequence[player.Shown], **options: Any
    ) -> None:
        """Adds videos that play in step; arguments as of `player.fragment`."""
        self._parts.append(player.fragment(caption, videos, **options))
        self._players += 1

    def render(self) -> str:
        """The page; it has a script only if it has a player."""
        title = html.escape(self.title)
        body = "\n".join(self._parts)
        style, allowed = _STYLE, "default-src 'none'; img-src data:; "
        allowed += "style-src 'unsafe-inline'"
        if self._players:
            style += player.STYLE
            body += "\n" + player.script()
            allowed += "; script-src 'unsafe-inline'"
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # The browser itself refuses whatever would come from elsewhere.
            f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n'
            f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
