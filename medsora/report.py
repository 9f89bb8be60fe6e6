"""Pages to read in a browser: one HTML file that holds its style, pictures and videos and loads nothing else.

    report = Report("A comparison", "What was compared, in a sentence.")
    report.figures([("held-out PSNR", "31.2 dB"), ("videos", 8)])
    report.heading("Samples").video("samples/all.mp4", caption="Eight videos")
    report.table(["method", "time"], [["ours", "1.2 s"], ["theirs", "2.1 s"]])
    report.write("report.html")

Every text is escaped: what a page shows is what was passed, never markup.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from medsora.files import write_text

MEDIA_TYPES = {
    ".png": "image/png",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".mp4": "video/mp4",
}

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --text: #1c2430; --soft: #5b6675;
  --line: #e1e5ea; --accent: #0b6e75; --stripe: #f8fafb; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2028; --text: #e3e8ee; --soft: #96a2b1;
  --line: #2c3440; --accent: #5cc4c9; --stripe: #1e252e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere; }
h1::after { content: ""; display: block; width: 3.5rem; height: 4px; margin: 1rem 0 1.5rem; border-radius: 2px;
  background: var(--accent); }
h2 { margin: 3rem 0 .75rem; font-size: 1.4rem; letter-spacing: -.01em; }
h3 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
p { max-width: 46rem; margin: .75rem 0; overflow-wrap: anywhere; }
p.lead { color: var(--soft); font-size: 1.1rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.25rem; margin: 1.5rem 0; font-size: .95rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }
dl div { display: flex; flex-direction: column-reverse; padding: 1rem 1.25rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
dt { color: var(--soft); font-size: .875rem; line-height: 1.4; }
dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.4; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.table { width: fit-content; min-width: min(100%, 26rem); max-width: 100%; margin: 1.25rem 0; overflow-x: auto;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
table { width: 100%; border-collapse: collapse; font-size: .925rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { min-width: 7.5rem; overflow-wrap: anywhere; }
td:first-child { min-width: 10rem; }
td.number, th.number { min-width: 0; text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--stripe); }
tbody tr:last-child td { border-bottom: 0; }
figure { margin: 1.25rem 0; padding: .75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
figure img, figure video { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 6px; }
figure video { width: 100%; max-width: 40rem; background: #000; }
figcaption { margin-top: .6rem; color: var(--soft); font-size: .9rem; text-align: center; }
@media print { body { background: #fff; } main { padding: 0; max-width: none; } .table { overflow: visible; }
  figure, dl div, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""

_NUMBER = re.compile(r"[-+\u2212]?[\d.,\u2009]+(e[-+]?\d+)?(\s?(%|x|\u00d7|[kMG]?i?B|dB|[mun\u00b5]?s|min|h|fps|Hz))?")


class Report:
    """Collects the parts of a page in reading order; each method returns the report, so that calls can follow on.

    Media files are read when they are added, so they may go away before the page is written.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []
        self._sections: list[str] = []

    def heading(self, text: str, level: int = 2) -> Report:
        """Opens a section (level 2, listed at the top of the page) or a part of one (level 3)."""
        if level == 2:
            self._sections.append(text)
            return self._add(f'<h2 id="section-{len(self._sections)}">{_text(text)}</h2>')
        if level == 3:
            return self._add(f"<h3>{_text(text)}</h3>")
        raise ValueError(f"level must be 2 or 3, got {level}; the title of the page has level 1")

    def paragraph(self, text: str) -> Report:
        """Adds a paragraph of plain text."""
        return self._add(f"<p>{_text(text)}</p>")

    def figures(self, values: Iterable[tuple[str, object]]) -> Report:
        """Adds key figures, (name, value) each, as cards side by side."""
        cards = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in values)
        return self._add(f"<dl>{cards}</dl>")

    def table(self, header: Sequence[object], rows: Iterable[Sequence[object]]) -> Report:
        """Adds a table; columns of nothing but numbers (with or without a unit, "-" for none) are set flush right.

        Raises:
            ValueError: A row has more or fewer cells than the header.
        """
        rows = [[str(cell) for cell in row] for row in rows]
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(f"rows[{number}] must have {len(header)} cells as the header has, got {len(row)}")
        kinds = [
            ' class="number"' if _all_numbers([row[column] for row in rows]) else "" for column in range(len(header))
        ]
        head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, header))
        body = "".join(
            "<tr>" + "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row)) + "</tr>\n"
            for row in rows
        )
        return self._add(
            f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'
        )

    def image(self, path: str | os.PathLike, caption: str = "") -> Report:
        """Adds a png, gif or jpeg, stored in the page itself.

        Raises:
            ValueError: The file is missing or of another kind.
        """
        source = _data_url(path, "image")
        alternative = _text(caption or Path(path).stem.replace("-", " "))
        return self._figure(f'<img src="{source}" alt="{alternative}">', caption)

    def video(self, path: str | os.PathLike, caption: str = "") -> Report:
        """Adds an mp4, stored in the page itself, that plays silently and repeats.

        Raises:
            ValueError: The file is missing or of another kind.
        """
        source = _data_url(path, "video")
        return self._figure(f'<video src="{source}" controls loop autoplay muted playsinline></video>', caption)

    def curves(self, path: str | os.PathLike, caption: str = "") -> Report:
        """Adds a png of curves, such as `medsora.plots.plot_curves` draws."""
        return self.image(path, caption)

    def html(self) -> str:
        """The page as text."""
        links = "".join(f'<a href="#section-{n}">{_text(name)}</a>' for n, name in enumerate(self._sections, 1))
        lead = f'<p class="lead">{_text(self.subtitle)}</p>\n' if self.subtitle else ""
        contents = f"<nav>{links}</nav>\n" if len(self._sections) > 2 else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{_text(self.title)}</h1>\n{lead}{contents}" + "\n".join(self._parts) + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike) -> None:
        """Writes the page, whole or not at all; missing parent folders are made."""
        write_text(path, self.html())

    def _figure(self, content: str, caption: str) -> Report:
        below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure>{content}{below}</figure>")

    def _add(self, part: str) -> Report:
        self._parts.append(part)
        return self


def _all_numbers(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell != "-"]
    return bool(filled) and all(map(_NUMBER.fullmatch, filled))


def _text(value: object) -> str:
    return escape(str(value), quote=True)


def _data_url(path: str | os.PathLike, kind: str) -> str:
    path = Path(path)
    media_type = MEDIA_TYPES.get(path.suffix.lower(), "")
    if not media_type.startswith(kind + "/"):
        wanted = ", ".join(suffix for suffix, name in MEDIA_TYPES.items() if name.startswith(kind + "/"))
        raise ValueError(f"{kind} must be a file of the kind {wanted}, got {path}")
    if not path.is_file():
        raise ValueError(f"{kind} must be a file that exists, got {path}")
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
