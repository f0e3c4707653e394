"""What the workflows promise: actions by commit, pull requests on fixed releases, and what comes next by the clock."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / ".github/workflows").glob("*.yml")}
WORKFLOWS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
RELEASE = re.compile(r"^([\w-]+)==([\d.]+)(; python_version .*)?$", re.MULTILINE)


def triggers(name: str) -> set[str]:
    return set(WORKFLOWS[name][True])  # `on` is a truth value in YAML


def commands(name: str) -> list[str]:
    steps = [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def releases(name: str) -> dict[str, str]:
    """The newest release of each package that a file of constraints allows."""
    found = {}
    for package, version, _ in RELEASE.findall((ROOT / name).read_text(encoding="utf-8")):
        found[package] = max(found.get(package, "0"), version, key=lambda text: [*map(int, text.split("."))])
    return found


def test_actions_are_pinned_by_commit():
    uses = [line.strip(" -") for text in TEXTS.values() for line in text.splitlines() if "uses:" in line]
    pinned = re.compile(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")
    assert len(uses) > 5 and not [line for line in uses if not pinned.fullmatch(line)]


def test_a_pull_request_meets_no_release_that_was_not_tested():
    assert [name for name in WORKFLOWS if "pull_request" in triggers(name)] == ["tests.yml"]
    installing = [command for command in commands("tests.yml") if "pip install" in command]
    assert installing and all("--constraint ${{ matrix.constraints }}" in command for command in installing)


def test_what_comes_next_is_tested_by_the_clock_alone():
    assert triggers("upstream.yml") == {"schedule", "workflow_dispatch"}
    packages = " ".join(
        one["packages"] for one in WORKFLOWS["upstream.yml"]["jobs"]["tests"]["strategy"]["matrix"]["include"]
    )
    assert "huggingface/transformers@main" in packages and " trl peft " in packages
    assert not [command for command in commands("upstream.yml") if "--constraint" in command]


def test_both_ends_of_what_is_supported_are_tested():
    matrix = WORKFLOWS["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"]
    tested = {one["constraints"] for one in matrix["include"]} | set(matrix["constraints"])
    assert tested == {"constraints-oldest.txt", "constraints.txt"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert tested == set(re.findall(r"--constraint (\S+) --editable", makefile))


@pytest.mark.parametrize("package", ["transformers", "trl"])
def test_the_oldest_is_what_the_package_requires(package):
    floor = re.search(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    assert releases("constraints-oldest.txt")[package].removesuffix(".0") == floor
    assert releases("constraints.txt")[package] >= floor
