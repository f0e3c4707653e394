"""The benchmark of servers runs, with tiny models, and says what was asked of whom."""

import json
from importlib.util import find_spec

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")]


def test_smoke(tmp_path, capsys):
    from benchmarks.vllm import ONE_BY_ONE, OURS, VLLM, main

    options = ["--tiny", "--dtype", "float32", "--new-tokens", "4", "--at-once", "1", "3", "--repeats", "1"]
    main([*options, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "vllm-ours-qwen3-0.6b.json").read_text())["found"]
    assert {ONE_BY_ONE, OURS, VLLM} < set(found)
    for name, of in found.items():
        assert [*of] == ["1", "3"] and all(one["rate"]["median"] > 0 and one["ttft"] for one in of.values())
        assert all((one["again"] is not None) == (name in (OURS, VLLM)) for one in of.values())
    assert "tiny ours-qwen3-0.6b, random weights, 4 new tokens" in capsys.readouterr().out
