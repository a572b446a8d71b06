"""A report as one page that needs no network: tables that sort, plots that answer to the mouse.

Owns the page's HTML, style and script. Must not know what is reported: it is given blocks. The
page's policy forbids it to load anything, so it shows the same from a file and from a server.
"""

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.report_blocks import Block, Cell, Code, Heading, Items, Picture, Table, Text
from mobilenets_jax.errors import InputError

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)
_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --back: #ffffff;
  --band: #f6f8fa; --rule: #d1d9e0; --link: #0057a8; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --soft: #a0a8b0; --back: #15181c;
  --band: #1f242a; --rule: #3a424b; --link: #7cb8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.5rem 4rem; max-width: 1240px; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans",
  sans-serif; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 3rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
.wide { overflow-x: auto; max-height: 85vh; border: 1px solid var(--rule); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; }
td { border-top: 1px solid var(--rule); }
th { position: sticky; top: 0; background: var(--band); vertical-align: bottom; z-index: 1; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td:not(.number) { min-width: 5.5rem; overflow-wrap: anywhere; }
td:first-child:not(.number) { min-width: 12rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th button::after { content: "\\00a0↕"; color: var(--soft); font-weight: 400; }
th[aria-sort=ascending] button::after { content: "\\00a0↑"; color: inherit; }
th[aria-sort=descending] button::after { content: "\\00a0↓"; color: inherit; }
tbody tr:hover { background: var(--band); }
pre { padding: .7rem 1rem; overflow-x: auto; background: var(--band); border-radius: 6px; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .875em; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; background: #ffffff; border-radius: 6px; padding: .3rem; }
figcaption { color: var(--soft); font-size: .875rem; }
.plot { width: 100%; }
"""
# Sorting keeps the order of equal rows; cells without a number come last either way.
_SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = head.classList.contains("number");
    const key = (row) => {
      const cell = row.cells[column];
      return numeric ? Number(cell.dataset.value ?? NaN) : cell.textContent;
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (!numeric) return (down ? -1 : 1) * a.localeCompare(b, "en", { numeric: true });
      if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
      return down ? b - a : a - b;
    });
    body.append(...rows.map(([, row]) => row));
  }));
}
const plots = [...document.querySelectorAll(".plot")];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function themed(layout) {
  const look = structuredClone(layout);
  Object.assign(look, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest", font: { color: colour("--text"), size: 13,
    family: getComputedStyle(document.body).fontFamily } });
  look.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"),
    activecolor: colour("--text") };
  look.hoverlabel = { bgcolor: colour("--band"), bordercolor: colour("--rule"), align: "left",
    font: { color: colour("--text") } };
  for (const name of ["xaxis", "yaxis", "xaxis2", "yaxis2"]) {
    if (look[name]) Object.assign(look[name], { gridcolor: colour("--rule"),
      zerolinecolor: colour("--soft"), linecolor: colour("--soft") });
  }
  for (const menu of look.updatemenus ?? []) {
    Object.assign(menu, { bgcolor: colour("--band"), bordercolor: colour("--rule") });
  }
  return look;
}
function draw() {
  for (const plot of plots) {
    const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
    Plotly.newPlot(plot, data, themed(layout), { responsive: true, displaylogo: false,
      showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
"""


def page(blocks: Sequence[Block], folder: Path) -> str:
    """Returns the page.

    Args:
        blocks: the report; the first is its title.
        folder: where pictures' files lie; they are put into the page.

    Raises:
        InputError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError(
            "report.html needs Plotly: `pip install '.[report]'` installs it."
        ) from error
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    chapters = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = [f'<li><a href="#{_anchor(text)}">{inline(text)}</a></li>' for text in chapters]
    body = [_block(block, folder) for block in blocks]
    nav = f"<nav><ul>{''.join(links)}</ul></nav>"
    # A plot's library would otherwise be tens of thousands of lines of the page's middle.
    scripts = [f"<script>{code}</script>" for code in (get_plotlyjs(), _SCRIPT)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{inline(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *body[:1],
            nav,
            *body[1:],
            *scripts,
            "</body>",
            "</html>",
            "",
        ]
    )


def inline(text: str) -> str:
    """Returns a block's text as HTML: `code`, **bold**, and backslashes before what is data."""
    parts = re.split(r"(\\.|`[^`]+`|\*\*(?:\\.|[^*\\])+\*\*)", text)
    return "".join(map(_part, parts))


def _part(part: str) -> str:
    if part.startswith("\\") and len(part) == 2:
        return html.escape(part[1])
    if len(part) > 2 and part.startswith("`") and part.endswith("`"):
        return f"<code>{html.escape(part[1:-1])}</code>"
    if len(part) > 4 and part.startswith("**") and part.endswith("**"):
        return f"<strong>{inline(part[2:-2])}</strong>"
    return html.escape(part)


def _block(block: Block, folder: Path) -> str:
    match block:
        case Heading(level, text):
            # What the page links to; titles below repeat.
            name = f' id="{_anchor(text)}"' if level == 2 else ""
            return f"<h{level}{name}>{inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{inline(text)}</p>"
        case Items(texts):
            return f"<ul>{''.join(f'<li>{inline(text)}</li>' for text in texts)}</ul>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table():
            return _table(block)
        case Picture(file, alt, figure):
            caption = f"<figcaption>{html.escape(alt)}</figcaption>"
            if figure is None:
                data = base64.b64encode((folder / file).read_bytes()).decode("ascii")
                image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'
                return f"<figure>{image}{caption}</figure>"
            # No "<" in a script, lest a name end it.
            text = json.dumps(figure, allow_nan=False, separators=(",", ":"))
            text = text.replace("<", "\\u003c")
            return (
                f'<figure>{caption}<div class="plot" role="img" aria-label="{html.escape(alt)}">'
                f'</div><script type="application/json">{text}</script></figure>'
            )
    raise TypeError(block)


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_class(right)}><button type="button">{inline(name) or "&nbsp;"}</button>'
        "</th>"
        for name, right in zip(table.head, table.numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, table.numeric))}</tr>" for row in table.rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(cell: Cell, right: bool) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{_class(right)}{value}>{inline(cell.text)}</td>"


def _class(right: bool) -> str:
    return ' class="number"' if right else ""


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
