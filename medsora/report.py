"""One self-contained HTML page: headings, tables, pictures and videos, all inside a single file."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from medsora.errors import UserError
from medsora.files import write_text

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".mp4": "video/mp4"}

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1d21; --soft: #63656f; --line: #e3e4e8;
  --panel: #f6f6f8; --accent: #0b7285; }
@media (prefers-color-scheme: dark) { :root { --paper: #151619; --ink: #e8e8ec; --soft: #a0a2ad; --line: #33353c;
  --panel: #1e2024; --accent: #4fc3d5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 1.25rem; padding-bottom: .75rem;
  border-bottom: 3px solid var(--accent); }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
p { max-width: 46rem; margin: .75rem 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .4rem 1.25rem .4rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 5rem; }
th { color: var(--soft); font-weight: 600; }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
dl > div { background: var(--panel); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1.1rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.45rem; font-weight: 650; font-variant-numeric: tabular-nums; }
figure { margin: 1.25rem 0; }
figure > img, figure > video { display: block; max-width: 100%; border-radius: .4rem; border: 1px solid var(--line); }
figure > video { width: min(100%, 34rem); background: #000; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
.curves > img { background: #fff; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


class Report:
    """Collects the parts of a page in their order and writes them as one HTML file that needs no other.

    All text is escaped. Pictures and videos are read when they are added and stored inside the page. Every method but
    `write` and `html` returns the report, so that calls can be chained.

    title: the page's title and first heading.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str, level: int = 2) -> Self:
        """Starts a section (level 2) or a part of one (level 3)."""
        if level not in (2, 3):
            raise ValueError(f"level: got {level}, wants 2 or 3")
        return self._add(f"<h{level}>{_escape(text)}</h{level}>")

    def paragraph(self, text: str) -> Self:
        """A paragraph of plain text."""
        return self._add(f"<p>{_escape(text)}</p>")

    def key_figures(self, figures: Mapping[str, object]) -> Self:
        """A row of large numbers, each with its name: {"reconstruction": "28.1 dB"}."""
        cells = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in figures.items())
        return self._add(f"<dl>{cells}</dl>")

    def table(self, header: Sequence[object], rows: Sequence[Sequence[object]]) -> Self:
        """A table; ValueError for a row with more or fewer cells than the header."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"rows: got a row of {len(row)} cells ({row[0]!r}, ...), wants {len(header)}")
        lines = [_row("th", header), *(_row("td", row) for row in rows)]
        return self._add(f'<div class="scroll"><table>\n{chr(10).join(lines)}\n</table></div>')

    def image(self, path: str | os.PathLike, caption: str = "") -> Self:
        """A png, jpg or gif file. Raises UserError if it is missing or of another kind."""
        return self._figure(f'<img src="{_data_uri(path, "image")}" alt="{_alternative(path, caption)}">', caption)

    def video(self, path: str | os.PathLike, caption: str = "") -> Self:
        """An mp4 file, which plays by itself, silently and again and again."""
        uri = _data_uri(path, "video")
        return self._figure(f'<video src="{uri}" controls loop autoplay muted playsinline></video>', caption)

    def curves(self, path: str | os.PathLike, caption: str = "") -> Self:
        """A plot, on white paper whatever the page's colours."""
        image = f'<img src="{_data_uri(path, "image")}" alt="{_alternative(path, caption)}">'
        return self._figure(image, caption, "curves")

    def html(self) -> str:
        """The page so far."""
        return PAGE.format(title=_escape(self.title), style=STYLE, body="\n".join(self._parts))

    def write(self, path: str | os.PathLike) -> None:
        """Writes the page, whole or not at all."""
        write_text(path, self.html())

    def _figure(self, content: str, caption: str, kind: str = "") -> Self:
        below = f"<figcaption>{_escape(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{content}{below}</figure>")

    def _add(self, part: str) -> Self:
        self._parts.append(part)
        return self


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _row(cell: str, values: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{cell}>{_escape(value)}</{cell}>" for value in values) + "</tr>"


def _alternative(path: str | os.PathLike, caption: str) -> str:
    return _escape(caption or Path(path).stem.replace("-", " "))


def _data_uri(path: str | os.PathLike, family: str) -> str:
    path = Path(path)
    kind = KINDS.get(path.suffix.lower(), "")
    if not kind.startswith(family):
        wanted = ", ".join(suffix for suffix, name in KINDS.items() if name.startswith(family))
        raise UserError(f"path: got {path.name}, wants {family} of kind {wanted}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"path: {path} cannot be read: {error.strerror}") from None
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
