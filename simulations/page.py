"""One HTML file that opens offline: what the pages of a sweep and of an audit have in common.

Text must come escaped. Scripts and styles are inlined, and a content security policy forbids everything else.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from common.runfolder import write_atomically

_CONTENT_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_STYLE = (
    "body{max-width:64rem;margin:0 auto;padding:2rem 1.25rem;font:1rem/1.5 system-ui,sans-serif;color:#1c2128}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}p{max-width:56rem}"
)


def write_html(path: Path, title: str, parts: Iterable[str], style: str) -> None:
    """Writes a page as a whole.

    Args:
        path: of the file.
        title: plain text.
        parts: of the body, as HTML.
        style: CSS beyond what all pages have.
    """
    head = (
        f'<!doctype html><html lang="en-GB"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}"><style>{_STYLE}{style}</style></head>'
        "<body>"
    )
    write_atomically(path, (head + "\n".join(parts) + "</body></html>\n").encode("utf-8", "replace"))
