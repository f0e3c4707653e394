"""What is laid out: whole or not at all, small enough, and the same each time."""

import gzip
import json
import re

import pytest

from tests.web.conftest import ROOT, load_assemble

WEB = ROOT / "demo/web"
# Of what a first visit loads, compressed.
MOST_BYTES = 10_000_000


@pytest.fixture
def assemble():
    return load_assemble()


def test_a_first_visit_loads_little(site):
    """The packed files as they are, the others as servers compress them."""
    index = json.loads((site / "files.json").read_text(encoding="utf-8"))
    packed = sum(size for name, size in index["packed"].items() if "asyncify" not in name)
    others = sum(len(gzip.compress((site / name).read_bytes(), 6)) for name in index["page"] if "blank" not in name)
    assert {name for name in index["packed"] if not (site / name).is_file()} == set()
    assert 5_000_000 < packed + others < MOST_BYTES


def test_all_that_is_laid_out_is_named(site):
    index = json.loads((site / "files.json").read_text(encoding="utf-8"))
    named = {*index["page"], *index["packed"]}
    there = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    assert {name for name in there - named if not name.endswith((".md", ".LICENSE"))} == {"files.json", "blank.html"}


def test_packages_are_pinned_with_checksums():
    wanted = json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert locked[""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert all(one["integrity"].startswith("sha512-") for path, one in locked.items() if path)


def test_a_space_takes_it_as_it_is():
    header = re.match(r"---\n(.*?)\n---\n", (WEB / "SPACE.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert fields["sdk"] == "static" and (WEB / "page" / fields["app_file"]).is_file()
    assert len(fields["short_description"]) <= 60


def test_what_cannot_be_laid_out_is_said_and_leaves_nothing(assemble, tmp_path, monkeypatch, capsys):
    output = tmp_path / "site"
    arguments = [str(output), "--exported", str(tmp_path)]
    monkeypatch.setattr(assemble.shutil, "which", lambda name: None)
    assert assemble.main(arguments) == 2
    assert "npm is needed" in capsys.readouterr().err
    monkeypatch.setattr(assemble, "install", lambda directory: directory)
    assert assemble.main(arguments) == 2
    assert "is no exported checkpoint" in capsys.readouterr().err
    manifest = {"version": 1, "files": ["decoder.onnx", "decoder.onnx.data"]}
    (tmp_path / "export.json").write_text(json.dumps(manifest))
    for name in manifest["files"]:
        (tmp_path / name).touch()
    assert assemble.main(arguments) == 2
    assert "too much for a browser" in capsys.readouterr().err
    (tmp_path / "export.json").write_text(json.dumps(manifest | {"files": ["decoder.onnx"]}))
    assert assemble.main(arguments) == 2  # the packages are not there
    assert not output.exists() and not output.with_name("site.partial").exists()
    output.mkdir()
    assert assemble.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_npm_says_is_passed_on(assemble, tmp_path, monkeypatch, capsys):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(assemble.shutil, "which", lambda name: str(npm))
    assert assemble.main([str(tmp_path / "site")]) == 2
    assert capsys.readouterr().err == "npm could not fetch what the page is made of:\nno network\n"
