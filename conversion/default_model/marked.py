"""Results written into a page by the command that measured them."""

from __future__ import annotations

import re
from pathlib import Path


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME begin... -->` and `<!-- NAME end -->` in `page`, a Markdown file.

    Raises:
        ValueError: if the page has no such markers, or has them more than once.
    """
    old = page.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {re.escape(name)} begin[^>]*-->\n).*?(<!-- {re.escape(name)} end -->)", re.DOTALL)
    new, found = marked.subn(lambda match: f"{match[1]}{text}\n{match[2]}", old)
    if found != 1:
        raise ValueError(
            f"{page} has {found} places between '<!-- {name} begin -->' and '<!-- {name} end -->'; it must have one."
        )
    page.write_text(new, encoding="utf-8")
