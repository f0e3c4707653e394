"""Runs what the README and the site's pages tell a reader to run, as it stands there, from top to bottom."""

import re
import shutil

import pytest

from tests.pages.blocks import PAGES, ROOT, blocks_of
from tests.pages.running import run_block

# Pages that make what others are given.
MADE_HERE = {"released-weights": ["flashsloth-3.2b"], "backbones": ["untrained"]}
SLOW = ("export",)  # traces a model and compares answers
RUN = ("bash", "python")
SHOWN = ("text", "bibtex")  # what a file or an output looks like
REASONS = {"several GPUs", "a GPU", "the Hub", "hours"}
MOST_NOT_RUN = 6


def with_blocks() -> list:
    slow = {page: [pytest.mark.slow] for page in PAGES if page.stem in SLOW}
    return [pytest.param(page, id=page.stem, marks=slow.get(page, [])) for page in PAGES if blocks_of(page)]


@pytest.mark.parametrize("page", with_blocks())
def test_a_page_runs(page, desk):
    for name in MADE_HERE.get(page.stem, []):
        shutil.rmtree(desk / name)
    names = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.language in RUN and not (block.not_run or block.run_by):
            try:
                run_block(block, names)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{page.relative_to(ROOT)}, the block in line {block.line}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page):
    text = page.read_text(encoding="utf-8")
    # None is indented.
    assert len(re.findall(r"^ *```\w", text, re.MULTILINE)) == len(blocks_of(page))
    for block in blocks_of(page):
        assert block.language in (*RUN, *SHOWN), block
        if block.run_by:
            assert (ROOT / block.run_by).is_file()
        if block.not_run:
            assert block.not_run in REASONS, block


def test_few_blocks_are_not_run():
    assert sum(block.not_run is not None for page in PAGES for block in blocks_of(page)) <= MOST_NOT_RUN


LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page) -> set[str]:
    """As Python-Markdown and GitHub make them of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    found = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}
    return found | set(re.findall(r"^::: (transformers_flashsloth\.\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f": notebooks/{notebook.stem}.md\n" in navigation
