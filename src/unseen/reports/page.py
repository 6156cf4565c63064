"""One small HTML page without scripts or anything from elsewhere, and files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from unseen.errors import InputError

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --surface: #ffffff; --ink: #1b1d20; --muted: #5d636b;
  --line: #dfe1e4; --bad: #a3271d; --series-1: #0072b2; --series-2: #d55e00; --series-3: #00855f;
  --series-4: #b0588f; --series-5: #8a6d00; --series-6: #3a7fa8; --series-7: #6b6b6b; --series-8: #1b1d20; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --surface: #1d2024; --ink: #e8eaed;
  --muted: #a2a9b2; --line: #363b42; --bad: #ff9a8f; --series-1: #5cb2ea; --series-2: #ff9255;
  --series-3: #3ec79b; --series-4: #e29cc7; --series-5: #e0c04a; --series-6: #8ccbec; --series-7: #b5b5b5;
  --series-8: #e8eaed; } }
body { margin: 0 auto; max-width: 980px; padding: 24px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
figure { margin: 0 0 20px; padding: 16px; background: var(--surface); border: 1px solid var(--line);
  border-radius: 12px; } svg { width: 100%; } svg text { font-family: inherit; }
div { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
.words { text-align: left; white-space: normal; }
p, figcaption { color: var(--muted); }
"""
"""Light and dark, with the colours that `svg` leaves to the page."""


def html_page(title: str, heading: str, about: Mapping[str, object], body: str, style: str = "") -> str:
    """A whole page. `about`: facts in a line under the heading; `body`: HTML; `style`: rules beyond `STYLE`."""
    facts = "; ".join(f"{name}: {value}" for name, value in about.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style></head><body>\n'
        f"<h1>{escape(heading)}</h1>\n<p>{escape(facts)}</p>\n{body}\n</body></html>\n"
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str] = ()) -> str:
    """A table that scrolls sideways where it is too wide; columns of `words` stand left and break their lines."""
    kinds = [' class="words"' if name in words else "" for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{k}>{escape(text)}</td>' for k, text in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def write_texts(folder: str | Path, texts: Mapping[str, str]) -> None:
    """Write files by name, in their order, each whole or not at all. Raises InputError where that is not possible."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            part = folder / f".{name}.part"
            try:
                part.write_text(text, encoding="utf-8")
                os.replace(part, folder / name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise InputError(f"folder {str(folder)!r}", problem, "Choose another.") from None
