from importlib.util import find_spec

import pytest

import flashsloth_command as command
from transformers_flashsloth.serving import with_vllm
from transformers_flashsloth.serving.command import _parser


def test_options_that_mean_the_same(tmp_path):
    arguments = ["some/model", "--engine", "vllm", "--port", "9", "--hd", "--dtype", "bfloat16"]
    options = _parser("serve").parse_args([*arguments, "--allow-files", str(tmp_path)])
    found = " ".join(with_vllm.vllm_command(options)[1:])
    assert found == (
        "-m vllm.entrypoints.openai.api_server --model some/model --served-model-name some/model --host localhost "
        f'--port 9 --dtype bfloat16 --mm-processor-kwargs {{"image_hd": true}} --allowed-local-media-path {tmp_path}'
    )


def test_options_that_have_no_counterpart(monkeypatch, capsys):
    monkeypatch.setattr(with_vllm, "find_spec", lambda name: True)
    for arguments, said in (
        (["--private-urls"], "--allowed-media-domains"),
        (["--device", "cpu"], "was built for"),
        (["--visual-tokens", "4"], "own window"),
        (["--feature-cache-mb", "0"], "rules of its own"),
    ):
        assert command.main(["serve", "--engine", "vllm", *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm(capsys):
    assert command.main(["serve", "--engine", "vllm"]) == 2
    assert "--engine vllm needs vLLM" in capsys.readouterr().err
