"""vLLM's own server in place of that of transformers, with the same options where they mean the same."""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec

from ..checkpoints.opening import DEFAULT_CHECKPOINT, InputError


def serve_with_vllm(options: argparse.Namespace) -> int:
    """
    Runs vLLM's OpenAI server until it is interrupted; returns its exit code.

    Raises:
        InputError: if vLLM is missing, or an option has no counterpart there.
    """
    if find_spec("vllm") is None:
        raise InputError('--engine vllm needs vLLM, best in an environment of its own: pip install "vllm>=0.32"')
    if options.private_urls is not None:
        raise InputError("--private-urls is for the server of transformers; vLLM has --allowed-media-domains")
    if options.device is not None:
        raise InputError("--device is for the server of transformers; vLLM computes on what it was built for")
    if options.visual_tokens is not None:
        raise InputError("--visual-tokens is for the server of transformers; vLLM knows the model's own window")
    if options.feature_cache_mb is not None:
        raise InputError("--feature-cache-mb is for the server of transformers; vLLM keeps images by rules of its own")
    return subprocess.call(vllm_command(options))


def vllm_command(options: argparse.Namespace) -> list[str]:
    """The command that starts vLLM's server."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", options.model or DEFAULT_CHECKPOINT, "--served-model-name", options.model or "flashsloth"]
    command += ["--host", options.host, "--port", str(options.port)]
    if options.dtype is not None:
        command += ["--dtype", options.dtype]
    if options.hd:
        command += ["--mm-processor-kwargs", json.dumps({"image_hd": True})]
    if options.allow_files is not None:
        command += ["--allowed-local-media-path", str(options.allow_files.resolve())]
    return command
