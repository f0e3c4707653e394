"""The blocks of code in a page of Markdown, and what the page says of those that no test of pages runs."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?:<!-- (not run|run by): ([^\n]+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code, its line in the page, and `not_run`, a reason, or `run_by`, a file of tests."""

    line: int
    language: str
    code: str
    not_run: str | None
    run_by: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        kind, reason, language, code = match.groups()
        line = text.count("\n", 0, match.start(3)) + 1
        found.append(Block(line, language, code, *(reason if kind == one else None for one in ("not run", "run by"))))
    return found


def commands_of(block: Block) -> list[str]:
    """The command lines of a block of bash, comments and continued lines put together."""
    lines = re.sub(r" *\\\n *", " ", block.code).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]
