"""The comparison's tables and its figure, from the JSON files of its rows."""

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from .compare_rows import shown
from .measure import summary
from .report import markdown_table, put_between_marks, read_json, with_spread, write_json
from .short_report import ahead_table, cache_bytes, counts_table, short_table
from .worker import FLOOR, FLOOR_HD, OURS, OURS_HD

PARTS = ("preprocessing", "vision", "compression", "decoder", "other")
TIMES = ["model", "visual tokens", "TTFT / floor", "the same, CPU time", "TTFT, s",
         *(f"{part}, %" for part in PARTS), "x roofline", "decode, tokens/s", "decode / floor",
         "decode of 8 rows, tokens/s",
         "x roofline"]  # fmt: skip
OWN = ["over its own floor", "TTFT", "the same, CPU time", "decode", "decode of 8 rows"]
SIZES = ["model", "prompt", "TFLOP", "of which vision", "compression", "weights, GB", "KV cache, MB",
         "peak memory, GB"]  # fmt: skip
ALT = "Time to the first token by its parts, and decoding speed, of each model in multiples of the floor's."


def write_report(
    directory: Path, names: list[str], readme: Path | None = None, short_readmes: Sequence[Path] = ()
) -> str:
    """
    Writes `summary.json`, `tables.md` and, where matplotlib is installed, `figure.png`; with `readme` also the tables
    into that document, between the marks named "compare", the figure beside it as `compare.png`, and what was counted,
    between those named "counts"; into `short_readmes` one short table, between the marks named "speed", and, where a
    preset and a rival of its class were measured, how presets stand to the best of their class, between those named
    "presets": each into the documents that have its marks. Rows that were counted and not measured are in the short
    table and among the counts alone.

    Returns:
        `str`: the tables.
    """
    read = {name: read_json(directory / f"{name}.json") for name in (FLOOR, *names)}
    rows = {name: row for name, row in read.items() if row is not None}
    counted = (read_json(directory / "counts.json") or {"rows": {}})["rows"]
    summaries = {name: counted[name] for name in names if name in counted}
    summaries |= {name: summarise(row) for name, row in rows.items()}
    write_json(directory / "summary.json", summaries)
    parts, is_drawn = [], False
    if any("samples" in row for row in rows.values()):
        measured = {name: summaries[name] for name in rows}
        parts.append(tables(rows, measured))
        is_drawn = draw(directory / "figure.png", measured)
        if readme is not None:
            figure = f"\n\n![{ALT}](compare.png)" if is_drawn else ""
            put_between_marks(readme, "compare", parts[0] + figure)
            if is_drawn:
                shutil.copy(directory / "figure.png", readme.with_name("compare.png"))
    if counted:
        parts.append(counts_table(summaries))
        failed = {name: found["error"] for name, found in summaries.items() if "error" in found and name not in rows}
        parts += [f"{name} was not counted: {error}" for name, error in failed.items()]
        if readme is not None:
            put_between_marks(readme, "counts", counts_table(summaries))
    shorts = {"speed": short_table(summaries), "presets": ahead_table(summaries)}
    for document in short_readmes:
        for mark in [mark for mark in shorts if f"<!-- {mark} begin -->" in document.read_text()] or ["speed"]:
            if shorts[mark]:
                put_between_marks(document, mark, shorts[mark])
    (directory / "tables.md").write_text("\n\n".join(parts) + "\n")
    if not is_drawn:
        parts.append("No figure, as matplotlib is not installed." if rows else "")
    else:
        parts.append(f"The figure is {directory / 'figure.png'}.")
    return "\n\n".join(filter(None, parts))


def ratios(row: dict, part: str, kind: str, floors: str = "floors") -> list[float]:
    """Each sample of a row over the mean of the floor's samples before and after it, or over its own floor's."""
    samples, found = row["samples"], row.get(floors)
    if floors == "floors":
        found = [_mean(pair, part, kind) for pair in pairwise(found)]
    else:
        found = [sample[part][kind] for sample in found]
    return [sample[part][kind] / floor for sample, floor in zip(samples, found, strict=False)]


def _mean(samples: tuple[dict, ...], part: str, kind: str) -> float:
    return sum(sample[part][kind] for sample in samples) / len(samples)


def summarise(row: dict) -> dict:
    """
    Medians with their spread: seconds, shares of TTFT, ratios to the floor, and how many times longer than its roofline
    each phase took: the larger of operations over the matmul ceiling and bytes of weights over the memory ceiling.
    """
    if "error" in row:
        return {"error": row["error"]}
    samples, facts, settings = row["samples"], row["facts"], row["settings"]
    ceiling = {name: max(found[name] for found in row["ceilings"]) for name in ("flops", "bytes")}
    prefill_bound = max(facts["flops"]["total"] / ceiling["flops"], facts["weight_bytes"] / ceiling["bytes"])
    decode_bound = (facts["decoding_bytes"] + facts["kv_bytes"]) / ceiling["bytes"]
    result = {
        "facts": facts,
        "ceilings": ceiling,
        "ttft": summary([sample["ttft"]["wall"] for sample in samples]),
        "ttft_cpu": summary([sample["ttft"]["cpu"] for sample in samples]),
        "shares": {
            part: summary([sample[part].get("wall", 0) / sample["ttft"]["wall"] for sample in samples])
            for part in PARTS
        },
        "ttft_over_roofline": summary(
            [(sample["ttft"]["wall"] - sample["preprocessing"]["wall"]) / prefill_bound for sample in samples]
        ),
        "decode_over_roofline": summary([sample["decode"]["wall"] / decode_bound for sample in samples]),
        "tokens_per_second": summary([1 / sample["decode"]["wall"] for sample in samples]),
        "peak_bytes": summary([sample["peak_bytes"] for sample in samples]),
    }
    if "decode_batch" in samples[0]:
        rates = [settings["batch"] / sample["decode_batch"]["wall"] for sample in samples]
        result["batch_tokens_per_second"] = summary(rates)
    if row["name"] != FLOOR:
        result["ttft_over_floor"] = summary(ratios(row, "ttft", "wall"))
        result["ttft_cpu_over_floor"] = summary(ratios(row, "ttft", "cpu"))
        result["decode_over_floor"] = summary([1 / ratio for ratio in ratios(row, "decode", "wall")])
    own = {OURS: "floors", OURS_HD: "own_floors"}.get(row["name"])
    if own:
        result["over_own_floor"] = over_own_floor(row, own)
    return result


def over_own_floor(row: dict, floors: str) -> dict[str, dict]:
    """TTFT of FlashSloth over its floor's, wall and CPU time, and its decoding speeds over the floor's."""
    found = {
        "ttft": summary(ratios(row, "ttft", "wall", floors)),
        "ttft_cpu": summary(ratios(row, "ttft", "cpu", floors)),
    }
    for part in ("decode", "decode_batch"):
        if part in row["samples"][0]:
            found[part] = summary([1 / ratio for ratio in ratios(row, part, "wall", floors)])
    return found


def tables(rows: dict, summaries: dict) -> str:
    """Where the figures come from, a table of times, one of sizes, and the errors."""
    first = next(row for row in rows.values() if "ceilings" in row)
    machine, ceiling = first["machine"], summaries[first["name"]]["ceilings"]
    good = {name: found for name, found in summaries.items() if "error" not in found}
    lines = [
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} threads, {machine['dtype']}, torch "
        f"{machine['torch']}, transformers {machine['transformers']}; at best {ceiling['flops'] / 1e12:.2f} TFLOP/s "
        f"and {ceiling['bytes'] / 1e9:.0f} GB/s. One 768 x 768 image, a question of 24 tokens; medians (quartiles).",
        markdown_table(TIMES, [_times(name, found) for name, found in good.items()]),
    ]
    own = [[shown(name), *_own(found["over_own_floor"])] for name, found in good.items() if "over_own_floor" in found]
    lines += [markdown_table(OWN, own)] if own else []
    lines.append(markdown_table(SIZES, [_sizes(name, found) for name, found in good.items()]))
    lines += [f"{name} did not run: {found['error']}" for name, found in summaries.items() if "error" in found]
    return "\n\n".join(lines)


def _times(name: str, found: dict) -> list[str]:
    shares = [f"{100 * found['shares'][part]['median']:.1f}" for part in PARTS]
    return [
        shown(name), str(found["facts"]["visual_tokens"]), with_spread(found.get("ttft_over_floor")),
        with_spread(found.get("ttft_cpu_over_floor")),
        with_spread(found["ttft"]), *shares, with_spread(found["ttft_over_roofline"]),
        with_spread(found["tokens_per_second"]), with_spread(found.get("decode_over_floor")),
        with_spread(found.get("batch_tokens_per_second")), with_spread(found["decode_over_roofline"]),
    ]  # fmt: skip


def _own(found: dict[str, dict]) -> list[str]:
    return [with_spread(found.get(part), digits=3) for part in ("ttft", "ttft_cpu", "decode", "decode_batch")]


def _sizes(name: str, found: dict) -> list[str]:
    facts = found["facts"]
    flops = [f"{facts['flops'][part] / 1e12:.3f}" for part in ("total", "vision", "compression")]
    return [
        shown(name), str(facts["prompt_tokens"]), *flops, f"{facts['weight_bytes'] / 1e9:.2f}",
        f"{cache_bytes(facts) / 1e6:.1f}", f"{found['peak_bytes']['median'] / 1e9:.2f}",
    ]  # fmt: skip


def draw(path: Path, summaries: dict) -> bool:
    """TTFT in multiples of the floor's, by stage, and decoding beside it. Returns whether matplotlib is there."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return False
    names = [name for name in summaries if "error" not in summaries[name] and name != FLOOR_HD]
    ratio = {name: summaries[name].get("ttft_over_floor", {"median": 1.0})["median"] for name in names}
    names.sort(key=ratio.get, reverse=True)

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 0.42 * len(names) + 1.6), sharey=True, width_ratios=(3, 1)
    )
    shares = {name: {part: summaries[name]["shares"][part]["median"] for part in PARTS} for name in names}
    # Medians of parts need not add up to the median of the whole.
    shares = {name: {part: share / sum(of.values()) for part, share in of.items()} for name, of in shares.items()}
    start = [0.0] * len(names)
    for part, colour in zip(PARTS, ("#9aa5b1", "#4c78a8", "#e45756", "#72b7b2", "#d9d9d9"), strict=True):
        widths = [ratio[name] * shares[name][part] for name in names]
        left.barh([*map(shown, names)], widths, left=start, color=colour, label=part)
        start = [begin + width for begin, width in zip(start, widths, strict=True)]
    for index, name in enumerate(names):
        tokens = summaries[name]["facts"]["visual_tokens"]
        # Clear of the line of the floor.
        left.text(
            max(start[index], 1.0 if ratio[name] > 0.5 else 0),
            index,
            f"  {ratio[name]:.2f}  ({tokens} visual tokens)",
            va="center",
            fontsize=8,
        )
    left.axvline(1, color="black", linewidth=0.8, linestyle=":")
    left.set_xlim(0, max(start) * 1.4)
    left.set_xlabel("time to first token, in multiples of the floor's")
    left.legend(fontsize=8, loc="upper right")
    speeds = [summaries[name].get("decode_over_floor", {"median": 1.0})["median"] for name in names]
    right.barh(
        [*map(shown, names)], speeds, color=["#f58518" if name.startswith(OURS) else "#bab0ac" for name in names]
    )
    right.axvline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_xlabel("decoding speed, over stock Phi's")
    for label in left.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith(shown(OURS)) else "normal")
    for axes in (left, right):  # they share it
        axes.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True
