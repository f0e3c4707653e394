"""
How much memory making a model of backbones takes, in a process of its own: `python building_process.py TEXT VISION WARM
[GGUF_FILE]`.
"""

import gc
import resource
import subprocess
import sys
from pathlib import Path

UNIT = 1 if sys.platform == "darwin" else 1024


def memory_of_building(text: Path, vision: Path, warm: Path, *gguf_file: str) -> float:
    """Most memory beyond what was in use before, as a part of the bytes of the result; `warm` is a small decoder."""
    command = [sys.executable, __file__, str(text), str(vision), str(warm), *gguf_file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.splitlines()[-1])


def in_use() -> int:
    """Bytes of the process now, where the system says so, or else the most so far."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def main(text: str, vision: str, warm: str, gguf_file: str | None = None) -> None:
    from transformers_flashsloth import from_backbones
    from transformers_flashsloth.building.plan import plan

    options = {"text_options": {"gguf_file": gguf_file}} if gguf_file else {}
    from_backbones(warm, vision)  # what is imported on the way
    plan(text, vision, **options)
    gc.collect()
    before = in_use()
    model, _ = from_backbones(text, vision, **options)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    sys.stdout.write(f"\n{(most - before) / sum(p.nbytes for p in model.parameters())}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
