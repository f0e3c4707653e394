"""
Rows a second in batches of FlashSloth, against rows one by one: `python -m benchmarks.batches`.

Rows differ in the length of their question, and a fourth has no image. A batch takes them as they come, or, of twice
as many as the largest batch holds, those whose whole prompts are of about one length; these are also answered one by
one. Beside it, the time to first token of up to eight equal rows over the floor's.
"""

import torch

from .measure import Clock, PeakMemory, summary
from .options import common_parser, settings_of
from .ours import Floor, ask_flashsloth, ask_floor, build_flashsloth
from .report import markdown_table, publish, with_spread
from .sampling import generate
from .subjects import Subject, photo, text_ids

HEADER = ["rows", "as they come, rows/s", "by length, rows/s", "by length / one by one", "peak memory, GB",
          "TTFT / floor, equal rows"]  # fmt: skip
SHORTEST, LONGEST = 8, 128
# More of them take long and say nothing new.
MOST_EQUAL_ROWS = 8


def main(arguments: list[str] | None = None) -> None:
    parser = common_parser(__doc__, "benchmarks/results/batches")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="sizes of a batch")
    parser.add_argument("--repeats", type=int, default=3, help="samples (default %(default)s)")
    parser.add_argument("--hd", action="store_true", help="five views an image instead of one")
    parser.add_argument("--equal", action="store_true", help="only the time to first token of equal rows")
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    result = measure(settings, options.rows, options.repeats, options.hd, options.equal)
    name = f"batches{'-hd' * options.hd}"
    publish(options, name, result, table(result))


@torch.inference_mode()
def measure(settings, sizes: list[int], repeats: int, hd: bool, only_equal: bool) -> dict:
    """Rates, ratios and peaks for each size; every repeat goes through all of them, so that drift cancels."""
    device, dtype = settings.device, getattr(torch, settings.dtype)
    model = build_flashsloth("ours", device, dtype, settings.tiny)
    ours, floor = ask_flashsloth(model, device, dtype, hd), ask_floor(Floor(model), device, dtype, hd)
    clock, memory = Clock(device), PeakMemory(device)
    single, pool = ours.inputs(photo()), mixed_lengths(2 * max(sizes))
    ordered = sorted(pool, key=lambda length: mixed_rows(ours, single, [length])["input_ids"].shape[1])
    found = {size: {"mixed": [], "grouped": [], "over_one_by_one": [], "ttft_over_floor": []} for size in sizes}
    peaks, one_by_one = dict.fromkeys(sizes, 0), []

    def alike(size: int) -> list[int]:
        start = (len(ordered) - size) // 2
        return ordered[start : start + size]

    def seconds(lengths: list[int]) -> float:
        rows = mixed_rows(ours, single, lengths)
        return clock.time(lambda: generate(ours, rows, settings.new_tokens))["wall"]

    def ttft(subject: Subject, inputs: dict[str, torch.Tensor]) -> float:
        return clock.time(lambda: generate(subject, inputs, 1))["wall"]

    def equal(size: int) -> dict[str, torch.Tensor]:
        return {name: value.expand(size, *value.shape[1:]) for name, value in single.items()}

    # The first to run takes what the largest batch needs from the system, page by page.
    ttft(ours, equal(min(max(sizes), MOST_EQUAL_ROWS)))
    for _ in range(repeats):
        if not only_equal:
            alone = {length: seconds([length]) for length in alike(max(sizes))}
            one_by_one.append(len(alone) / sum(alone.values()))
        for size, of in found.items():
            if not only_equal:
                memory.reset()
                of["mixed"].append(size / seconds(pool[:size]))
                peaks[size] = max(peaks[size], memory.read())
                together = seconds(alike(size))
                of["grouped"].append(size / together)
                of["over_one_by_one"].append(sum(alone[length] for length in alike(size)) / together)
            if size <= MOST_EQUAL_ROWS:
                of["ttft_over_floor"].append(ttft(ours, equal(size)) / ttft(floor, equal(size)))
    sizes_found = {
        size: {name: summary(values) if values else None for name, values in of.items()} | {"peak_bytes": peaks[size]}
        for size, of in found.items()
    }
    alone = summary(one_by_one) if one_by_one else None
    return {"one_by_one": alone, "new_tokens": settings.new_tokens, "sizes": sizes_found}


def mixed_lengths(count: int) -> list[int]:
    """Lengths of questions from `SHORTEST` to `LONGEST`, in an order that mixes them; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator).tolist()


def mixed_rows(subject: Subject, single: dict, lengths: list[int]) -> dict[str, torch.Tensor]:
    """A left-padded batch of rows with questions of these lengths; those with a length of 4 n have no image."""
    template, config = single["input_ids"][0].tolist(), subject.model.config
    begin = template.index(config.image_token_id)
    queries = [config.query_token_id] * config.num_query_tokens
    image = [config.image_token_id] * template.count(config.image_token_id)
    rows = [
        template[:begin] + (image if length % 4 else []) + text_ids(1 + length) + queries + text_ids(5)
        for length in lengths
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=subject.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=subject.device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    num_images = sum(length % 4 > 0 for length in lengths)
    if num_images:
        inputs["pixel_values"] = single["pixel_values"].expand(num_images, -1, -1, -1, -1)
    return inputs


def table(result: dict) -> str:
    lines = [
        [
            str(size), with_spread(found["mixed"]), with_spread(found["grouped"]),
            with_spread(found["over_one_by_one"]), f"{found['peak_bytes'] / 1e9:.2f}" if found["peak_bytes"] else "",
            with_spread(found["ttft_over_floor"], digits=3),
        ]
        for size, found in result["sizes"].items()
    ]  # fmt: skip
    text = markdown_table(HEADER, lines)
    if result["one_by_one"] is None:
        return text
    one = with_spread(result["one_by_one"], digits=3)
    return f"One by one: {one} rows/s, {result['new_tokens']} new tokens each.\n\n{text}"


if __name__ == "__main__":
    main()
