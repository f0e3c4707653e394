"""
The paper's 14 benchmarks as tasks of lmms-eval, and where the authors' copy of it differs from version 0.7.3.

What the release does is read from the copy of lmms-eval in codefanw/FlashSloth 881445a: its task files, and its model
file `lmms_eval/models/FlashSloth.py`, which drops a task's `until` (an answer ends with `</s>`). Where no difference is
named, prompt and limit are the same in both.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from ..publishing.card import PUBLISHED_SCORES

# The release's answers end where the model ends them, whatever a task says.
UNTIL_THE_END = {"until": ["</s>"]}


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark of the paper.

    Args:
        name (`str`): in the paper, and in `PUBLISHED_SCORES`.
        task (`str`): in lmms-eval.
        metrics (`tuple[str]`): of the task; their sum is the figure.
        scale (`float`): what makes the published unit of it: 100 where lmms-eval counts from 0 to 1.
        generation (`dict`): options of generation that differ in the release.
        judged (`bool`): whether a model of OpenAI judges the answers.
        note (`str`): what keeps figures apart even so.
    """

    name: str
    task: str
    metrics: tuple[str, ...]
    scale: float = 100.0
    generation: dict[str, Any] = field(default_factory=dict)
    judged: bool = False
    note: str = ""

    @property
    def published(self) -> tuple[float, float]:
        """The authors' figures: base, high definition."""
        return PUBLISHED_SCORES[self.name]


PAPER = (
    Benchmark("POPE", "pope", ("pope_accuracy",), note="the paper does not say whether it is accuracy or F1"),
    Benchmark("MME", "mme", ("mme_perception_score", "mme_cognition_score"), 1.0, note="perception and cognition"),
    Benchmark("MMBench", "mmbench_en_dev", ("gpt_eval_score",), 1.0, note="answers without a letter ask OpenAI"),
    Benchmark("MM-Vet", "mmvet", ("gpt_eval_score",), 1.0, judged=True, note="the release's judge was gpt-4-0613"),
    Benchmark("SEED-Image", "seedbench", ("seed_image",)),
    Benchmark("MMMU", "mmmu_val", ("mmmu_acc",), generation={"max_new_tokens": 16}, note="128 tokens in 0.7.3"),
    Benchmark(
        "MathVista",
        "mathvista_testmini_format",
        ("llm_as_judge_eval",),
        1.0,
        generation={"max_new_tokens": 1024, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
        judged=True,
        note="16,384 tokens in 0.7.3; the paper does not say which of three prompts",
    ),
    Benchmark("GQA", "gqa", ("exact_match",)),
    Benchmark("ScienceQA", "scienceqa_img", ("exact_match",)),
    Benchmark("TextVQA", "textvqa_val", ("exact_match",)),
    Benchmark("AI2D", "ai2d", ("exact_match",)),
    Benchmark("ChartQA", "chartqa", ("relaxed_overall",)),
    Benchmark("DocVQA", "docvqa_val", ("anls",)),
    Benchmark("RealWorldQA", "realworldqa", ("exact_match",), note="0.7.3 finds letters in longer answers, too"),
)
BY_TASK = {benchmark.task: benchmark for benchmark in PAPER}


def tasks_of(names: str) -> list[str]:
    """Tasks by names with commas between; `paper` is all of the paper's. None twice."""
    listed = [name.strip() for name in names.split(",") if name.strip()]
    tasks = [task for name in listed for task in (BY_TASK if name == "paper" else [name])]
    return list(dict.fromkeys(tasks))


def why_not(task: str) -> str | None:
    """Why a task cannot be scored here, known before a question is asked."""
    benchmark = BY_TASK.get(task)
    if benchmark is not None and benchmark.judged and not os.environ.get("OPENAI_API_KEY"):
        return "a model of OpenAI judges its answers, and OPENAI_API_KEY is not set"
    return None
