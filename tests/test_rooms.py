"""The package as a house: imports point downwards, no two files import each other, and `model/` stands alone."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import transformers_flashsloth

PACKAGE = Path(transformers_flashsloth.__file__).parent
# From the ground up; a room may import from those below it, not from those beside it.
FLOORS = (
    {"model"},
    {"checkpoints"},
    {"answering", "building", "publishing", "exported"},
    {"authors", "asking"},
    {"training", "serving", "vllm", "evaluation", "export", "demo"},
    {""},  # the package itself
)
MOST_FILES, MOST_LINES = 24, 3800
IMPORT = re.compile(r"^\s*from (\.+)([\w.]*) import", re.MULTILINE)


def imports_of(file: Path) -> set[str]:
    """The package's files that a file imports, as `room/name`."""
    here = file.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for dots, name in IMPORT.findall(file.read_text(encoding="utf-8")):
        parts = here[: len(here) - len(dots)] + tuple(filter(None, name.split(".")))
        found.add("/".join(parts))
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = PACKAGE.rglob("*.py")
    return {file.relative_to(PACKAGE).with_suffix("").as_posix(): imports_of(file) for file in files}


def room_of(module: str) -> str:
    return module.split("/")[0] if "/" in module else ""


def test_every_import_is_of_a_file_that_is_there(graph):
    assert sum(map(len, graph.values())) > 100
    assert not {target for targets in graph.values() for target in targets} - graph.keys()


def test_nothing_imports_what_imports_it(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_arrows_point_downwards(graph):
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    upwards = [
        f"{source} -> {target}"
        for source, targets in graph.items()
        for target in targets
        if room_of(source) != room_of(target) and floor[room_of(source)] <= floor[room_of(target)]
    ]
    assert not upwards


def test_what_travels_is_flat_and_small():
    files = [file for file in (PACKAGE / "model").iterdir() if file.suffix == ".py" and file.name != "__init__.py"]
    outside = re.compile(r"^\s*(from \.\.|from \. import|(from|import) transformers_flashsloth)", re.MULTILINE)
    assert not [file.name for file in files if outside.search(file.read_text(encoding="utf-8"))]
    assert len(files) <= MOST_FILES
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= MOST_LINES


@pytest.mark.parametrize("name", ["modeling", "processing", "configuration"])
def test_what_newcomers_open_first_is_short(name):
    assert len((PACKAGE / f"model/{name}_flashsloth.py").read_text(encoding="utf-8").splitlines()) < 300


def test_type_checkers_may_read_it():
    assert (PACKAGE / "py.typed").is_file()  # what they see is checked by `make lint`, on tests/typed_user.py
