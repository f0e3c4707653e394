"""FlashSloth as a model of lmms-eval 0.7: `python -m lmms_eval --model flashsloth --model_args pretrained=DIR`."""

import inspect
from collections import Counter
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from ..checkpoints.opening import InputError
from .answers import Question
from .loading import open_answerer
from .options import read_options

NAMES = [name for name in inspect.signature(open_answerer).parameters if name not in ("batch_size", "device")]

# Documents whose images are held at once: a benchmark's all together may be more than memory holds.
SLICE = 128


class FlashSlothEvaluated(lmms):
    """
    Answers lmms-eval's documents: images and videos, one or several rounds, in batches, on one or several ranks.

    Args:
        pretrained (`str`): directory or Hub id of a checkpoint of either format.
        batch_size (`int` or `str`): of `--batch_size`. `"auto"` is refused.
        device (`str`, *optional*): of `--device`.
        max_batch_size (`int`, *optional*): taken as lmms-eval passes it; says nothing here.
        system_prompt (`str`, *optional*): a text, or a file with it, before the conversation.
        max_new_tokens (`int`, *optional*): where a task does not say.
        options: those of `open_answerer`: `peft`, `image_hd`, `num_frames`, `pooling_window`, `dtype`, `device_map`,
            `load_in`, `attn_implementation`, `seed`.

    Raises:
        InputError: for what cannot be used.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        **options: Any,
    ):
        super().__init__()
        if unknown := sorted(options.keys() - set(NAMES)):
            known = ", ".join(sorted({*NAMES, "system_prompt", "max_new_tokens"}))
            raise InputError(f"model_args has {', '.join(unknown)}, which FlashSloth does not know; it knows {known}")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise InputError(f"--batch_size must be a number of at least 1, got {batch_size!r}")
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1 and options.get("device_map") is not None:
            raise InputError("device_map= spreads a model over devices, which several ranks have one each of: use one")
        if self._world_size > 1 or (device is None and options.get("device_map") is None):
            device = str(self.accelerator.device)
        self.answerer = open_answerer(pretrained, batch_size=int(batch_size), device=device, **options)
        self.batch_size = int(batch_size)
        self.device = self.answerer.model.device
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self.max_new_tokens = max_new_tokens
        # What `flashsloth eval` asks otherwise than the task files of lmms-eval do.
        self.options_of_task: dict[str, dict[str, Any]] = {}

    @property
    def tokenizer_name(self) -> str:
        """What lmms-eval's caches know a model's chat template by."""
        return self.answerer.processor.tokenizer.name_or_path.replace("/", "__")

    def generate_until(self, requests) -> list[str]:
        """Answers documents of one round, in their order."""
        answers, asked = [], Counter()
        with self._progress(len(requests)) as bar:
            size = max(SLICE, self.batch_size)
            for start in range(0, len(requests), size):
                questions = [self._first_question(request) for request in requests[start : start + size]]
                answers += self.answerer.answer(questions, after_each=bar.update, asked=asked)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer)
        return answers

    def generate_until_multi_round(self, requests) -> list[list[str]]:
        """Answers documents of several rounds: a task makes the messages of each round from the answers before."""
        rounds: list[list[str]] = [[] for _ in requests]
        infos = [None] * len(requests)
        going = list(range(len(requests)))
        with self._progress(len(requests)) as bar:
            while going:
                questions = {}
                for row in going:
                    messages, infos[row] = self._round(requests[row], rounds[row], infos[row])
                    if messages is not None:
                        questions[row] = self._question(messages, requests[row].args[2])
                bar.update(len(going) - len(questions))
                going = list(questions)
                for row, answer in zip(going, self.answerer.answer(list(questions.values())), strict=True):
                    rounds[row].append(answer)
        return rounds

    def loglikelihood(self, requests):
        """Refused: lmms-eval 0.7.3 gives models that take conversations, as this one, no such request."""
        raise NotImplementedError(
            "FlashSloth generates answers, and lmms-eval 0.7 asks no conversational model for likelihoods: choose a "
            "task with `output_type: generate_until`"
        )

    def _round(self, request, answers: list[str], info):
        """The messages of the next round, or `None` after the last, and what the task wants to be told then."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        if not answers:
            return doc_to_messages(doc), info
        made = doc_to_messages(doc, round_idx=len(answers), previous_output=list(answers), previous_round_info=info)
        if not isinstance(made, tuple):  # a task that knows of one round only
            return None, info
        messages, is_last, _, info = made
        return (None if is_last else messages), info

    def _first_question(self, request) -> Question:
        _, doc_to_messages, options, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return self._question(messages, options | self.options_of_task.get(task, {}))

    def _question(self, messages: list[dict], options: dict) -> Question:
        if self.system_prompt:
            messages = self._apply_system_prompt(list(messages), self.system_prompt)
        read = ChatMessages(messages=messages)
        if read.extract_media()[2]:
            raise InputError("a document has audio, which FlashSloth does not hear")
        return Question(read.to_hf_messages(), read_options(options, self.max_new_tokens))

    def _progress(self, total: int) -> tqdm:
        return tqdm(total=total, disable=self._rank != 0, desc="FlashSloth answers")
