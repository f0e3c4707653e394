"""What the README says of itself; its blocks are run by tests/pages, and its links held there."""

import re

from tests.pages.blocks import ROOT, blocks_of
from tests.pages.running import flashsloth, run_command

README = ROOT / "README.md"


def test_demo_prints_what_the_readme_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    (shown,) = [block.code for block in blocks_of(README) if block.code.startswith("image:")]
    image, question, answer = re.fullmatch(r"image: +(.+)\nquestion: +(.+)\nanswer: +(.+)\n", shown).groups()

    assert f'.venv/bin/flashsloth ask "{image}" "{question}"' in run_command("make demo")
    assert flashsloth(["ask", image, question]) == f"{answer}\n"


def test_make_knows_its_targets():
    targets = re.findall(r"(?:`|^)make ([\w-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(targets)
    for target in targets:
        run_command(f"make {target}")


def test_it_fits_two_screens():
    """Of a desktop's browser, some 60 lines each; tables, the block to cite and blank lines not counted."""
    lines = README.read_text(encoding="utf-8").partition("## Cite")[0].splitlines()
    assert len([line for line in lines if line and not line.startswith(("|", "#"))]) < 60
