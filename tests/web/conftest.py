"""The page, laid out and served on loopback, and Chromium to look at it. Skipped where one of its needs is missing."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.web.page import BLANK, Page, chromium, find_chromium
from tests.web.serving import serve

ROOT = Path(__file__).parents[2]
PROGRAMS = ("chromedriver", "npm")
MODULES = ("selenium", "onnx", "onnxscript", "onnxruntime")
# Sides of the windows that the page can choose from, whatever the shipped config lists: 36, 16, 9, 4 tokens and one.
WINDOWS = [2, 3, 4, 6, 12]
# A directory that `flashsloth export --precision uint8` wrote of such a checkpoint, to save the minutes that it takes.
REUSED = os.environ.get("FLASHSLOTH_EXPORTED")


def missing() -> list[str]:
    programs = [name for name in PROGRAMS if shutil.which(name) is None] + ([] if find_chromium() else ["chromium"])
    return programs + [name for name in MODULES if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items):
    if lacking := missing():
        skip = pytest.mark.skip(reason=f"the page in Chromium needs {', '.join(lacking)}")
        for item in items:
            if Path(__file__).parent in item.path.parents and {"browser", "site"} & {*item.fixturenames}:
                item.add_marker(skip)


def load_assemble():
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "demo/web/assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The shipped model in 8 bits, with several numbers of visual tokens."""
    if REUSED:
        return Path(REUSED)
    from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
    from transformers_flashsloth.export.writing import export_checkpoint

    directory = tmp_path_factory.mktemp("export")
    checkpoint = directory / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, checkpoint, ignore=shutil.ignore_patterns("__pycache__"))
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps(config | {"pooling_windows": WINDOWS}))
    export_checkpoint(str(checkpoint), directory / "exported", precision="uint8")
    return directory / "exported"


@pytest.fixture(scope="session")
def site(exported, tmp_path_factory) -> Path:
    """The page as the command lays it out."""
    output = tmp_path_factory.mktemp("page") / "site"
    assert load_assemble().main([str(output), "--exported", str(exported)]) == 0
    (output / BLANK).write_text("<!doctype html><title>blank</title><link rel=icon href=icon.svg>", encoding="utf-8")
    return output


@pytest.fixture(scope="session")
def server(site):
    with serve(site) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture
def blank(browser, server):
    """A page with nothing in it, whose scripts may import the modules of ours."""
    browser.get(f"{server.url}{BLANK}")
    return Page(browser, server)


@pytest.fixture(scope="session")
def told(exported):
    """
    What Python answers with the same export, to turns of a question and its images. Of answers that were given already
    it goes on from those.
    """
    from transformers_flashsloth.asking.conversation import Conversation

    def told(*turns, visual_tokens: int | None = None, given: tuple[str, ...] = ()) -> list[str]:
        conversation = Conversation([], checkpoint=str(exported), visual_tokens=visual_tokens)
        for (question, *paths), answer in zip(turns, given, strict=False):
            conversation.recall(question, answer, [str(path) for path in paths])
        return [conversation.ask(question, [str(path) for path in paths]) for question, *paths in turns[len(given) :]]

    return told


@pytest.fixture
def page(browser, server):
    """The page, ready to be asked; a test ends without an error in the console."""
    page = Page(browser, server)
    page.open()
    yield page
    assert page.console_errors() == []
