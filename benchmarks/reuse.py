"""
What a second question about an image costs: `python -m benchmarks.reuse`.

At the released sizes, base and HD, the time to first token of the second question over that of the first, with the
image's features kept and with the keys and values up to the question kept; preprocessing and the look-up by pixels are
included. And with the small model of the package, 100 questions over 10 images, by `answer_all` and one by one.
"""

from pathlib import Path

import torch
from PIL import Image

from transformers_flashsloth import FeatureStore, answer_all
from transformers_flashsloth.answering.features import digest, with_features
from transformers_flashsloth.answering.kept_prefix import KeptPrefix
from transformers_flashsloth.answering.prompts import Prompt
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT, open_model, open_processor
from transformers_flashsloth.model.prompt_memory import CACHE

from .measure import Clock, summary
from .options import common_parser, settings_of
from .ours import ask_flashsloth, build_flashsloth
from .report import markdown_table, publish, with_spread
from .sampling import generate
from .subjects import QUESTION_TOKENS, Subject, photo, text_ids

WAYS = ("first question", "features kept", "prefix kept")
HEADER = ["second question over the first", "TTFT, s", "of the first", "the same, CPU time"]
HEADER_OF_MANY = ["100 questions over 10 images", "s", "times one by one", "the same, CPU time", "answers equal"]
STORE_BYTES = 2**30
EXAMPLES = Path(DEFAULT_CHECKPOINT).parent / "examples"
QUESTIONS = [
    "What is this?", "What is in the top left corner?", "What is in the bottom right corner?", "Is there a fox?",
    "How many apples are there?", "What color is the triangle?", "Where is the cactus?", "What shape is red?",
    "Is there a penguin?", "What is in the top right corner?",
]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/reuse")
    parser.add_argument("--repeats", type=int, default=5, help="samples (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=10, help="of the 100 questions (default %(default)s)")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    result = {"many": measure_many(settings.device, options.repeats, options.batch_size, settings.tiny)}
    result |= measure(settings, options.repeats)
    publish(options, "reuse", result, table(result))


@torch.inference_mode()
def measure(settings, repeats: int) -> dict[str, dict]:
    """Seconds to the first token in each way, base and HD; every repeat goes through all of them."""
    device, dtype = settings.device, getattr(torch, settings.dtype)
    model = build_flashsloth("ours", device, dtype, settings.tiny)
    clock, found = Clock(device), {}
    for name, hd in (("base", False), ("HD", True)):
        subject = ask_flashsloth(model, device, dtype, hd)
        subject.stages.remove()
        sample(subject, clock)  # warms up
        rounds = [sample(subject, clock) for _ in range(repeats)]
        found[name] = {way: _over(rounds, way) for way in WAYS}
    return found


def _over(rounds: list[dict], way: str) -> dict:
    ratios = {kind: summary([taken[way][kind] / taken[WAYS[0]][kind] for taken in rounds]) for kind in ("wall", "cpu")}
    return {"ttft": summary([taken[way]["wall"] for taken in rounds]), **ratios}


def sample(subject: Subject, clock: Clock) -> dict[str, dict[str, float]]:
    """Seconds, wall and CPU, from the decoded image to the first token of three questions about it."""
    picture, store = photo(), FeatureStore(STORE_BYTES)
    prefix = KeptPrefix(subject.model, store)

    def ask(number: int) -> dict[str, torch.Tensor]:
        inputs = subject.inputs(picture)
        row = inputs["input_ids"][0]
        last_query = int((row == subject.model.config.query_token_id).nonzero()[0])
        row[last_query - QUESTION_TOKENS : last_query] = torch.tensor(text_ids(QUESTION_TOKENS, first=2000 + number))
        return inputs

    def prompt(number: int) -> Prompt:
        inputs = ask(number)
        pixels = inputs["pixel_values"]
        return Prompt(number, inputs["input_ids"][0].tolist(), pixels, tuple(map(digest, pixels)))

    def with_kept_features(number: int) -> None:
        generate(subject, with_features(subject.model, ask(number), store), 1)

    def with_kept_prefix(number: int) -> None:
        asked = prompt(number)
        cache, _ = prefix.cache_for([asked], None)
        ids = torch.tensor([asked.ids], device=subject.device)
        generate(subject, {"input_ids": ids, CACHE: cache}, 1)

    taken = {WAYS[0]: clock.time(lambda: with_kept_features(0))}
    taken[WAYS[1]] = clock.time(lambda: with_kept_features(1))
    prefix.cache_for([prompt(0), prompt(1)], None)
    taken[WAYS[2]] = clock.time(lambda: with_kept_prefix(2))
    return taken


def measure_many(device: str, repeats: int, batch_size: int, tiny: bool) -> dict:
    """Seconds of 100 questions over 10 images that come in turns, in float32, with `answer_all` and one by one."""
    model = open_model(DEFAULT_CHECKPOINT, dtype="float32").to(device)
    processor, clock = open_processor(DEFAULT_CHECKPOINT), Clock(device)
    pictures = [Image.open(path) for path in sorted(EXAMPLES.glob("*.png"))[: 2 if tiny else 10]]
    asked = [(picture, question) for question in QUESTIONS for picture in pictures]
    answers: dict[str, list[str]] = {}

    def one_by_one() -> None:
        answers["one by one"] = [_alone(model, processor, *question) for question in asked]

    def together() -> None:
        answers["together"] = answer_all(model, processor, asked, batch_size=batch_size)

    _alone(model, processor, *asked[0])
    rounds = [(clock.time(one_by_one), clock.time(together)) for _ in range(repeats)]
    return {
        "questions": len(asked),
        "equal": sum(a == b for a, b in zip(*answers.values(), strict=True)),
        "one_by_one": summary([alone["wall"] for alone, _ in rounds]),
        "together": summary([both["wall"] for _, both in rounds]),
        "wall": summary([alone["wall"] / both["wall"] for alone, both in rounds]),
        "cpu": summary([alone["cpu"] / both["cpu"] for alone, both in rounds]),
    }


def _alone(model, processor, picture: Image.Image, question: str) -> str:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    output = model.generate(**inputs)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def table(result: dict[str, dict]) -> str:
    lines = [
        [
            f"{name}, {way}", with_spread(result[name][way]["ttft"], digits=3),
            with_spread(result[name][way]["wall"], digits=3), with_spread(result[name][way]["cpu"], digits=3),
        ]
        for name in ("base", "HD")
        for way in WAYS
    ]  # fmt: skip
    many = result["many"]
    equal = f"{many['equal']} of {many['questions']}"
    lines_of_many = [
        ["one by one", with_spread(many["one_by_one"]), "", "", ""],
        ["answer_all", with_spread(many["together"]), with_spread(many["wall"]), with_spread(many["cpu"]), equal],
    ]
    return f"{markdown_table(HEADER, lines)}\n\n{markdown_table(HEADER_OF_MANY, lines_of_many)}"


if __name__ == "__main__":
    main()
