"""One process with models of one set of weights, asked for one sample at a time."""

import multiprocessing
import os
import traceback
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

FLOOR, FLOOR_HD, OURS, OURS_HD = "floor", "floor-hd", "ours", "ours-hd"
# Windows of 9 x 9 patches, which leave a view 9 tokens instead of 81.
OURS_9, OURS_HD_9 = "ours-window9", "ours-hd-window9"
FLASHSLOTH_NAMES = (FLOOR, FLOOR_HD, OURS, OURS_HD, OURS_9, OURS_HD_9)


@dataclass
class Settings:
    """
    What every process of a run shares.

    Attributes:
        threads (`int`, *optional*): of torch; its own choice by default.
        new_tokens (`int`): decoding steps that are timed, after the first token.
        batch (`int`): rows of the larger batch that decodes.
        tiny (`bool`): models that only show that the code runs.
        compile (`bool`): whether the parts are compiled, on CUDA with graphs.
    """

    device: str = "cpu"
    dtype: str = "bfloat16"
    threads: int | None = None
    new_tokens: int = 8
    batch: int = 8
    tiny: bool = False
    compile: bool = False


class Worker:
    """
    Starts a process that holds the models of `names`; `ask` runs one of `sampling`'s functions there.

    Raises (from `ask`):
        RuntimeError: with the error that the process met, such as a library that is missing; `EOFError` if it died.
    """

    def __init__(self, names: list[str], settings: Settings):
        spawn = multiprocessing.get_context("spawn")
        self.connection, there = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(there, names, asdict(settings)), daemon=True)
        self.process.start()
        there.close()

    def ask(self, function: str, *args):
        self.connection.send((function, args))
        good, answer = self.connection.recv()
        if not good:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, names: list[str], settings: dict) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from .sampling import Sampler

        sampler, failure = Sampler(names, Settings(**settings)), None
    except Exception as error:
        sampler, failure = None, last_line(error)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        if failure is not None:
            connection.send((False, failure))
            continue
        try:
            connection.send((True, getattr(sampler, function)(*args)))
        except Exception as error:
            traceback.print_exc()
            connection.send((False, last_line(error)))


def last_line(error: Exception) -> str:
    """An error in one line: its kind and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
