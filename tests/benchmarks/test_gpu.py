"""The command for a GPU: parts are processes with a limit, one that fails ends no other, and the report says all."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.gpu import Part


def python(code: str, limit: int = 60, needs: tuple[str, ...] = ()) -> Part:
    return Part(["-c", code], limit, needs)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command with these parts; returns its exit status, what it printed and the report."""

    def run(parts: dict[str, Part], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(gpu, "PARTS", parts)
        output = tmp_path / "report.md"
        with pytest.raises(SystemExit) as end:
            gpu.main(["--device", "cpu", "--output", str(output), *arguments])
        return end.value.code, capsys.readouterr().out, output.read_text()

    return run


def test_all_that_ran_well(run):
    status, printed, report = run({"one": python("print('words'); print('| a |'); print('| --- |'); print('| 7 |')")})
    assert status == 0 and "one ... passed" in printed
    assert "torch " + torch.__version__ in report and "| one | passed | " in report
    assert "**one**\n\n| a |\n| --- |\n| 7 |" in report and "words" not in report


def test_one_that_fails_or_misses_a_package_ends_no_other(run):
    status, printed, report = run(
        {
            "broken": python("print('began'); raise ValueError('no such kernel')"),
            "absent": python("raise AssertionError", needs=("torch", "no_such_package")),
            "impossible": python("print('Left out: no such kernel here'); raise SystemExit(77)"),
            "good": python("print('| fine |')"),
        }
    )
    assert status == 1
    assert re.findall(r"(\w+) \.\.\. (failed|left out|passed)", printed) == [
        ("broken", "failed"), ("absent", "left out"), ("impossible", "left out"), ("good", "passed"),
    ]  # fmt: skip
    assert "**broken**, failed:" in report and "ValueError: no such kernel" in report
    assert (
        "no_such_package is not installed." in report
        and "Left out: no such kernel here" in report
        and "| fine |" in report
    )


def test_tables_stand_apart_and_a_model_that_did_not_run_is_a_failure(run):
    status, _, report = run({"two": python("print('| a |'); print('between'); print('| b |'); print('| 2 |')")})
    assert status == 0 and "| a |\n\n| b |\n| 2 |" in report
    status, _, report = run({"comparison": python("print('| a |'); print('qwen3-vl-2b did not run: out of memory')")})
    assert status == 1 and "qwen3-vl-2b did not run: out of memory" in report


def test_one_that_hangs_is_ended_with_what_it_started(run, tmp_path):
    child = tmp_path / "child"
    code = f"""if True:
        import subprocess, sys, time
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(child)!r}, "w").write(str(process.pid))
        print("waiting", flush=True)
        time.sleep(60)
    """
    start = time.monotonic()
    status, _, report = run({"hangs": python(code, limit=4), "good": python("print('| fine |')")})
    assert status == 1 and time.monotonic() - start < 50
    assert "Ended after 4 s." in report and "waiting" in report and "| fine |" in report
    state = Path(f"/proc/{child.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_parts_that_no_time_is_left_for_are_said_to_fail(run):
    status, _, report = run({"late": python("print('| ran |')")}, "--minutes", "0")
    assert status == 1 and "No time was left for it" in report and "| ran |" not in report


def test_the_report_can_stand_in_a_document(run, tmp_path):
    document = tmp_path / "README.md"
    document.write_text("a\n<!-- gpu begin -->\n<!-- gpu end -->\nb\n")
    run({"one": python("print('| 7 |')")}, "--readme", str(document))
    assert "| one | passed |" in document.read_text() and document.read_text().endswith("b\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_device_it_says_what_can_be_done(tmp_path):
    with pytest.raises(SystemExit, match="`--tiny` goes through every part on the CPU"):
        gpu.main(["--output", str(tmp_path / "report.md")])


def test_every_part_is_of_this_repository_and_ends_in_time():
    for part in gpu.PARTS.values():
        assert (
            part.command[1] == "pytest" or (Path(gpu.__file__).parent / f"{part.command[1].split('.')[1]}.py").exists()
        )
    checks = [gpu.PARTS[name] for name in gpu_checks.CHECKS]
    assert all(part.command[-1] == "{device}" for part in checks)


@pytest.mark.parametrize("name", ["half precision", "caches"])
def test_checks_hold_on_a_cpu(name, capsys):
    with pytest.raises(SystemExit) as end:
        gpu_checks.main([name, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert end.value.code == 0, printed
    assert "| case | found |" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "torchao", "compiled", "FSDP2"])
def test_longer_checks_hold_on_a_cpu(name):
    for package in gpu_checks.CHECKS[name].needs:
        pytest.importorskip(package)
    command = [sys.executable, "-m", "benchmarks.gpu_checks", name, "--device", "cpu"]
    process = subprocess.run(command, cwd=Path(gpu.__file__).parent.parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def test_a_check_that_is_wrong_fails_and_lets_the_next_case_run(monkeypatch, capsys):
    def cases(device):
        yield "off", lambda: gpu_checks.near(torch.tensor([1.1, 2.0]), torch.tensor([1.0, 2.0]), 0.01)
        yield "not finite", lambda: gpu_checks.near(torch.tensor([float("nan")]), torch.tensor([1.0]), 0.01)
        yield "other answers", lambda: gpu_checks.same([[1]], [[2]])
        yield "right", lambda: gpu_checks.near(torch.tensor([1.0]), torch.tensor([1.0]), 0.01)

    monkeypatch.setitem(gpu_checks.CHECKS, "caches", gpu_checks.Check(cases))
    with pytest.raises(SystemExit) as end:
        gpu_checks.main(["caches", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert end.value.code == 1
    assert ["FAILED" in line for line in lines] == [True, True, True, False]


def test_flash_attention_is_left_out_where_it_is_not(capsys):
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    if is_flash_attn_2_available() or is_kernels_available():
        pytest.skip("it is here")
    with pytest.raises(SystemExit) as end:
        gpu_checks.main(["flash-attn 2", "--device", "cpu"])
    assert end.value.code == gpu_checks.LEFT_OUT
    assert "Left out: Neither flash-attn nor kernels" in capsys.readouterr().out
