"""What a worker measures of its models: facts that do not vary, and samples that do."""

import statistics
from itertools import pairwise

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from transformers_flashsloth.model.prompt_memory import CACHE

from .machine import ceilings, describe
from .measure import Clock, FlopCounter, Mark, PeakMemory
from .ours import Floor, ask_flashsloth, ask_floor, build_flashsloth
from .presets import PRESETS
from .rivals import build_rival
from .stages import Stages
from .subjects import Subject, photo
from .worker import FLASHSLOTH_NAMES, FLOOR_HD, OURS, OURS_9, OURS_HD, OURS_HD_9, Settings


class TokenClock(StoppingCriteria):
    """Marks when each new token is known, ends the watch on the stages with the first, and stops nothing."""

    def __init__(self, clock: Clock, stages: Stages):
        self.clock, self.stages = clock, stages
        self.marks: list[Mark] = []

    def __call__(self, input_ids: torch.LongTensor, scores: tuple | None, **kwargs) -> torch.BoolTensor:
        self.marks.append(self.clock.mark())
        self.stages.end()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def step(self) -> dict[str, float]:
        """Median seconds between two tokens, `{"wall", "cpu"}`."""
        self.clock.wait()
        steps = [self.clock.between(*pair) for pair in pairwise(self.marks)]
        return {kind: statistics.median(step[kind] for step in steps) for kind in ("wall", "cpu")}


class Sampler:
    """Builds the subjects of `names`, which share weights if they are several, and measures them."""

    def __init__(self, names: list[str], settings: Settings):
        self.settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.clock = Clock(settings.device)
        self.memory = PeakMemory(settings.device)
        self.image = photo()
        self.subjects = self._build(names)
        for subject in self.subjects.values():
            if settings.compile:
                _compile(subject)

    def _build(self, names: list[str]) -> dict[str, Subject]:
        device, dtype, tiny = self.settings.device, getattr(torch, self.settings.dtype), self.settings.tiny
        if set(names) <= set(FLASHSLOTH_NAMES):
            model = build_flashsloth(OURS, device, dtype, tiny)
            floor = Floor(model)
            ours = {OURS: (False, None), OURS_HD: (True, None), OURS_9: (False, 9), OURS_HD_9: (True, 9)}
            return {
                name: ask_flashsloth(model, device, dtype, *ours[name])
                if name in ours
                else ask_floor(floor, device, dtype, name == FLOOR_HD)
                for name in names
            }
        if names[0] in PRESETS:
            model = build_flashsloth(names[0], device, dtype, tiny)
            return {name: ask_flashsloth(model, device, dtype, name.endswith("hd")) for name in names}
        (name,) = names
        return {name: build_rival(name, device, dtype, tiny)}

    def ceilings(self) -> dict[str, float]:
        """See `machine.ceilings`."""
        return ceilings(self.settings.device, self.settings.dtype, self.settings.tiny)

    def machine(self) -> dict:
        """See `machine.describe`."""
        return describe(self.settings.device, self.settings.dtype)

    @torch.inference_mode()
    def facts(self, name: str) -> dict:
        """
        Counts, from one run that also warms up: tokens, floating-point operations of a prefill by stage, bytes of the
        weights, of those that decoding reads, of the keys and values of the prompt, and of what EmbQ keeps with them.
        """
        subject = self.subjects[name]
        inputs = subject.inputs(self.image)
        with FlopCounter() as counter:
            subject.stages.begin(counter.get_total_flops)
            output = generate(subject, inputs, 1, static=self.settings.compile)
        flops = subject.stages.totals(lambda start, end: {"flops": end - start})
        flops = {stage: values.get("flops", 0) for stage, values in flops.items()}
        total = counter.get_total_flops()
        memory = getattr(output[CACHE], "prompt_memory", None)
        return {
            "visual_tokens": subject.num_visual_tokens(inputs),
            "prompt_tokens": inputs["input_ids"].shape[1],
            "flops": flops | {"other": total - sum(flops.values()), "total": total},
            "weight_bytes": subject.weight_bytes,
            "decoding_bytes": subject.decoding_bytes,
            "kv_bytes": cache_bytes(output[CACHE]),
            "memory_bytes": _bytes(memory.image_features) if memory else 0,
        }

    @torch.inference_mode()
    def sample(self, name: str) -> dict:
        """
        Seconds, wall and CPU, of one image and question: `preprocessing`, `vision`, `compression`, `decoder` and
        `other` make `ttft`; then of a decoding step with one row and with a batch; and the peak memory in bytes.
        """
        subject, clock = self.subjects[name], self.clock
        tokens = TokenClock(clock, subject.stages)
        self.memory.reset()
        clock.wait()
        begin = clock.mark()
        inputs = subject.inputs(self.image)
        ready = clock.mark()
        subject.stages.begin(clock.mark)
        output = generate(subject, inputs, 1 + self.settings.new_tokens, tokens, static=self.settings.compile)
        decode, peak = tokens.step(), self.memory.read()

        result = {"preprocessing": clock.between(begin, ready)} | subject.stages.totals(clock.between)
        ttft = clock.between(begin, tokens.marks[0])
        result["other"] = {kind: ttft[kind] - sum(part.get(kind, 0) for part in result.values()) for kind in ttft}
        result |= {"ttft": ttft, "decode": decode, "peak_bytes": peak}
        if not self.settings.compile:  # a static cache has the rows that it was made for
            result["decode_batch"] = self._decode_batch(subject, inputs, output)
        return result

    def _decode_batch(self, subject: Subject, inputs: dict, output) -> dict[str, float]:
        """Seconds of a decoding step of `settings.batch` rows, which go on from copies of one row's cache."""
        rows, steps = self.settings.batch, self.settings.new_tokens
        ids = torch.cat([inputs["input_ids"], output.sequences[:, -1 - steps :]], dim=1).repeat(rows, 1)
        cache, tokens = output[CACHE], TokenClock(self.clock, subject.stages)
        cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=subject.device))  # which every kind of layer can
        generate(subject, {"input_ids": ids, CACHE: cache}, 1 + steps, tokens)
        return tokens.step()


def generate(subject: Subject, inputs: dict, new_tokens: int, tokens: TokenClock | None = None, static: bool = False):
    """Exactly `new_tokens` greedy tokens, whatever they are; `tokens` marks each."""
    options = {"cache_implementation": "static"} if static else {}
    return subject.model.generate(
        **inputs,
        **options,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([tokens] if tokens else []),
    )


def _compile(subject: Subject) -> None:
    """Compiles each part; decoding on CUDA is compiled by `generate` as it is for a static cache, with graphs."""
    subject.stages.remove()
    for module in (*subject.modules["vision"], *subject.modules["compression"], subject.modules["decoder"][0]):
        module.compile()


def cache_bytes(cache) -> int:
    """Bytes that a cache holds: keys and values, and the states of layers that convolve or attend linearly."""
    total = 0
    for layer in cache.layers:
        parts = [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for states in (getattr(layer, "conv_states", None), getattr(layer, "recurrent_states", None)):
            parts += list(states.values()) if isinstance(states, dict) else list(states or [])
        total += sum(_bytes(part) for part in parts if part is not None)
    return total


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
