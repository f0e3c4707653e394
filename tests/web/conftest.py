"""The page, laid out and served on loopback, and Chromium to look at it. Skipped where one of its needs is missing."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from tests.web.page import BLANK, Page, chromium, find_chromium
from tests.web.serving import serve

ROOT = Path(__file__).parents[2]
PROGRAMS = ("chromedriver", "npm")
MODULES = ("selenium", "onnx", "onnxscript", "onnxruntime")
# A directory that `flashsloth export --precision uint8` wrote, to save the minutes that it takes.
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
    """The shipped model in 8 bits."""
    if REUSED:
        return Path(REUSED)
    from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
    from transformers_flashsloth.export.writing import export_checkpoint

    output = tmp_path_factory.mktemp("export") / "exported"
    export_checkpoint(DEFAULT_CHECKPOINT, output, precision="uint8")
    return output


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


@pytest.fixture
def page(browser, server):
    """The page, ready to be asked; a test ends without an error in the console."""
    page = Page(browser, server)
    page.open()
    yield page
    assert page.console_errors() == []
