"""Runs transformers' own shared tests, fetched from PyPI, on FlashSloth's classes."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
# What the shared tests import and the source distribution lacks.
MISSING = {
    "__init__.py": "",
    "models/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "../fetch_hub_objects_for_ci.py": "def url_to_local_path(url, return_url_if_not_found=True):\n    return url\n",
}


@pytest.fixture(scope="module")
def shared_tests(tmp_path_factory) -> Path:
    """The `tests` folder of the installed transformers' source distribution, completed, with our suite in it."""
    directory = tmp_path_factory.mktemp("transformers")
    release = f"transformers=={transformers.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers", release]
    subprocess.run([*pip, "--dest", directory], check=True)
    with tarfile.open(next(directory.glob("*.tar.gz"))) as archive:
        archive.extractall(directory, filter="data")
    tests = next(directory.glob("transformers-*/tests"))
    root = tests.parent.resolve()
    suite = "models/flashsloth/test_suite.py"
    for name, text in (MISSING | {suite: (REPOSITORY / "tests/model/conformance/suite.py").read_text()}).items():
        file = (tests / name).resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        # Its own helper comes from here, as `tests` is transformers' folder there.
        file.write_text(text.replace("from tests.phi_tokenizer", "from phi_tokenizer"))
        if file.parent != root:
            (file.parent / "__init__.py").touch()
    return tests / suite


def test_shared_tests_pass(shared_tests):
    root = shared_tests.parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root}:{REPOSITORY / 'tests'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", str(shared_tests)]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    passed = re.search(r"(\d+) passed", run.stdout)
    assert run.returncode == 0, run.stdout[-20_000:]
    assert int(passed.group(1)) >= 160
