"""Write the result tables from `results/*.json`: `python -m fedkit.bench.readme [--check]`.

They stand in README and in the pages of docs/results. A table stands between two comment lines that
name it, and carries the command and the commit that made its figures. Nothing in it is written by
hand. Each `results/compare-*.json` has a table of its
file's name, and two pictures that are drawn beside it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedkit.bench.summary import with_summary
from fedkit.report import comparison
from fedkit.report.plots import plots

ROOT = Path(__file__).resolve().parents[2]
Result = Mapping[str, Any]


def _main_job(result: Result) -> list[str]:
    sent = result["bytes_up"] + result["bytes_down"]
    rows = {
        "accuracy of the dense start": f"{result['accuracy_dense_start']:.2%}",
        "accuracy of the selected candidate, untrained": f"{result['accuracy_selected']:.2%}",
        "accuracy of the final sparse model": f"{result['accuracy_sparse']:.2%}",
        "accuracy of its int8 artifact": f"{result['accuracy_int8']:.2%}",
        "accuracy of dense FedAvg, same rounds": f"{result['accuracy_dense_fedavg']:.2%}",
        "density": f"{result['density']:.2%}",
        "bytes down / up, all devices": f"{_mb(result['bytes_down'])} / {_mb(result['bytes_up'])}",
        "bytes of dense FedAvg, both ways": f"{_mb(result['bytes_dense_fedavg'])} "
        f"({result['bytes_dense_fedavg'] / sent:.1f} times as many)",
        "seconds of the sparse rounds": f"{result['seconds']:.0f}",
        "artifact": f"{result['artifact_bytes'] / 1e3:.1f} kB .tflite",
        "latency in LiteRT, one thread, same machine": f"{result['latency_median_us']:.0f} us",
    }
    return [
        "| | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]


def _wire(result: Result) -> list[str]:
    head = (
        "| density | values | bytes up | bytes down | dense float32, both ways | ratio "
        "| of the bound | a usual reply, fp32 | in 4 bits | ratio |"
    )
    rows = (
        f"| {row['density']:.0%} | {row['wire']} | {row['bytes_up']:,} | {row['bytes_down']:,} "
        f"| {row['bytes_dense_fp32']:,} | {row['ratio_dense']:.1f}x | {row['ratio_bound']:.3f} "
        f"| {row['bytes_update_fp32']:,} | {row['bytes_update_4bit']:,} "
        f"| {row['ratio_update_4bit']:.2f}x |"
        for row in result["rows"]
    )
    return [head, _rule(10), *rows]


def _sparsetrain(result: Result) -> list[str]:
    head = (
        "| model | density | ms per step, ours | torch | faster | memory, ours | torch | share "
        "| tensors, ours | torch |"
    )
    rows = (
        f"| {row['model']} | {row['density']:.0%} "
        f"| {1e3 * row['seconds_ours']:.1f} | {1e3 * row['seconds_torch']:.1f} "
        f"| {row['ratio']:.1f}x "
        f"| {_mb(row['peak_bytes_ours'])} | {_mb(row['peak_bytes_torch'])} "
        f"| {row['memory_ratio']:.1%} "
        f"| {_mb(row['tensor_bytes_ours'])} | {_mb(row['tensor_bytes_torch'])} |"
        for row in result["rows"]
    )
    return [head, _rule(10), *rows]


def _run(result: Result) -> list[str]:
    head = (
        "| seed | seconds of the run, sparse | torch | faster | whole command, sparse | torch "
        "| faster | accuracy, sparse | torch | difference |"
    )
    rows = (
        f"| {row.get('seed', 'median')} "
        f"| {row['seconds_sparse']:.1f} | {row['seconds_torch']:.1f} | {row['ratio']:.1f}x "
        f"| {row['seconds_total_sparse']:.1f} | {row['seconds_total_torch']:.1f} "
        f"| {row['ratio_total']:.1f}x "
        f"| {row['accuracy_sparse']:.2%} | {row['accuracy_torch']:.2%} "
        f"| {row['accuracy_difference_points']:+.2f} points |"
        for row in [*result["rows"], result]
    )
    return [head, _rule(10), *rows]


def _client(result: Result) -> list[str]:
    head = "| client | seconds to import | idle memory | peak memory | installed |"
    rows = (
        f"| {row['client']} | {row['seconds_import']:.2f} | {_mb(row['idle_bytes'])} "
        f"| {_mb(row['peak_bytes'])} | {_mb(row['installed_bytes'])} |"
        for row in result["rows"]
    )
    return [head, _rule(5), *rows]


def _cost(result: Result) -> list[str]:
    head = (
        "| method | TFLOPs | of PruneFL | largest round | of PruneFL | memory, model | of PruneFL "
        "| memory, measured | of PruneFL | bytes | of PruneFL |"
    )
    rows = (
        f"| {row['method']} "
        f"| {row['train_flops'] / 1e12:,.0f} | {_change(row, 'train_flops')} "
        f"| {row['train_flops_largest_round'] / 1e12:,.1f} "
        f"| {_change(row, 'train_flops_largest_round')} "
        f"| {_mb(row['memory_model_bytes'])} | {_change(row, 'memory_model_bytes')} "
        f"| {_mb(row['memory_measured_bytes'])} | {_change(row, 'memory_measured_bytes')} "
        f"| {_mb(row['bytes_total'])} | {_change(row, 'bytes_total')} |"
        for row in result["rows"]
    )
    return [head, _rule(11), *rows]


def _intgemm(result: Result) -> list[str]:
    head = (
        "| rows x depth x columns | bits | scales | runs on | us, ours | with packing "
        "| torch bf16 | from fp32 | fp32 | of bf16 | packed, of bf16 | packed, of bf16 from fp32 "
        "| of fp32 | packed, of fp32 |"
    )
    rows = (
        f"| {row['shape']} | {row['bits']} | {row['gradient']} | {row['path']} "
        f"| {1e6 * row['seconds_ours']:,.0f} | {1e6 * row['seconds_ours_packed']:,.0f} "
        f"| {1e6 * row['seconds_bf16']:,.0f} | {1e6 * row['seconds_bf16_packed']:,.0f} "
        f"| {1e6 * row['seconds_fp32']:,.0f} "
        f"| {row['ratio_bf16']:.2f}x | {row['ratio_bf16_packed']:.2f}x "
        f"| {row['ratio_bf16_converted']:.2f}x "
        f"| {row['ratio_fp32']:.2f}x | {row['ratio_fp32_packed']:.2f}x |"
        for row in result["rows"]
    )
    return [head, _rule(14), *rows]


def _l1norm(result: Result) -> list[str]:
    head = "| shape | us, L1 | L2 | torch bf16 | fp32 | of bf16 | of fp32 | of L2 |"
    rows = (
        f"| {row['shape']} "
        f"| {1e6 * row['seconds_l1_int8']:,.0f} | {1e6 * row['seconds_l2_int8']:,.0f} "
        f"| {1e6 * row['seconds_bn_bf16']:,.0f} | {1e6 * row['seconds_bn_fp32']:,.0f} "
        f"| {row['ratio_bf16']:.2f}x | {row['ratio_fp32']:.2f}x | {row['ratio_l2']:.2f}x |"
        for row in result["rows"]
    )
    return [head, _rule(8), *rows]


def _inttrain(result: Result) -> list[str]:
    head = (
        "| density | bits | gradients | ms per step, ours | torch bf16 | fp32 | our fp32 "
        "| of bf16 | of fp32 | of ours | memory, ours | bf16 | fp32 |"
    )
    rows = (
        f"| {row['density']:.0%} | {row['bits']} | {row['gradient']} "
        f"| {1e3 * row['seconds_ours']:.0f} | {1e3 * row['seconds_bf16']:,.0f} "
        f"| {1e3 * row['seconds_fp32']:.0f} | {1e3 * row['seconds_sparse']:.0f} "
        f"| {row['ratio_bf16']:.1f}x | {row['ratio_fp32']:.2f}x | {row['ratio_sparse']:.2f}x "
        f"| {_mb(row['peak_bytes_ours'])} | {_mb(row['peak_bytes_bf16'])} "
        f"| {_mb(row['peak_bytes_fp32'])} |"
        for row in result["rows"]
    )
    return [head, _rule(13), *rows]


def _intaccuracy(result: Result) -> list[str]:
    """One line per bits and gradient rule: mean and deviation over the seeds, L1 and L2."""
    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    for row in result["rows"]:
        kind = found.setdefault((row["bits"], row["gradient"]), {"l1": [], "l2": []})
        kind[row["norm"]].append(100 * row["accuracy"])
    head = "| bits | gradients | L1 norms | of fp32 | L2 norms | of fp32 |"
    full = found[32, "per-tensor"]
    rows = []
    for (bits, rule), norms in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1])):
        cells = [
            f"{fmean(own):.2f} ± {stdev(own):.2f} % | {fmean(own) - fmean(full[norm]):+.2f}"
            for norm, own in norms.items()
        ]
        rows.append(f"| {bits} | {rule if bits < 32 else ''} | {' | '.join(cells)} |")
    return [head, _rule(6), *rows]


def _infer(result: Result) -> list[str]:
    head = (
        "| model | density | runtime | us | artifact | memory | LiteRT / ours "
        "| whole LiteRT / ours | onnxruntime / ours | ExecuTorch / ours |"
    )
    rivals = "litert", "litert_whole", "ort", "executorch"
    rows = (
        f"| {row['model']} | {row['density']:.0%} | {row['runtime']} | {row['microseconds']:,.0f} "
        f"| {_kb(row['artifact_bytes'])} | {_kb(row['ram_bytes'])} "
        + "".join(f"| {_times(row[f'ratio_{rival}'])} " for rival in rivals)
        + "|"
        for row in result["rows"]
    )
    return [head, _rule(10), *rows]


def _exact(result: Result) -> list[str]:
    """A line per model and density: what differs in each runtime, accuracies, what slimming cut."""
    models: dict[tuple[str, float], list[Result]] = {}
    for row in result["rows"]:
        models.setdefault((row["model"], row["density"]), []).append(row)
    first = next(iter(models.values()))
    runtimes = list(dict.fromkeys(row["runtime"] for row in result["rows"]))
    bits = [key for key in first[0] if key.startswith("accuracy_int")]
    names = " | ".join(key.removeprefix("accuracy_") for key in bits)
    head = f"| model | density | {' | '.join(runtimes)} | float | {names} | parameters | MACs |"
    rows = []
    for (model, density), found in models.items():
        own, by_runtime = found[0], {row["runtime"]: _differ(row) for row in found}
        cells = [by_runtime.get(runtime, "") for runtime in runtimes]
        cells += [f"{own['accuracy_float']:.2%}"]
        cells += [f"{100 * (own[key] - own['accuracy_float']):+.2f}" for key in bits]
        cells += [f"{own['parameters_slim']:,} of {own['parameters']:,}"]
        cells += [f"{own['macs_slim']:,} of {own['macs']:,}"]
        rows.append(f"| {model} | {density:.0%} | {' | '.join(cells)} |")
    return [head, _rule(head.count("|") - 1), *rows]


def _differ(row: Result) -> str:
    """Return how many integers differ; or why there are none, in one cell of a table."""
    if "refused" in row:
        return " ".join(row["refused"].replace("|", "/").split())
    return f"{row['mismatches']:,} of {row['integers']:,}"


def _device(result: Result) -> list[str]:
    head = "| target | model | density | instructions | flash | RAM | stack | dense / this |"
    rows = (
        f"| {row['target']} | {row['model']} | {row['density']:.0%} | {row['instructions']:,} "
        f"| {_kb(row['flash_bytes'])} | {_kb(row['ram_bytes'])} | {row['stack_bytes']:,} B "
        f"| {_times(row['ratio_dense'])} |"
        for row in result["rows"]
    )
    return [head, _rule(8), *rows]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _kb(count: float) -> str:
    return f"{count / 1e3:,.0f} kB"


def _change(row: Mapping[str, Any], key: str) -> str:
    return f"{row[f'{key}_vs_prunefl']:+.1%}"


def _compare(result: Result) -> list[str]:
    head, lines = comparison.table(result)
    rows = (f"| {' | '.join(cells)} |" for cells in [head, *lines])
    return [next(rows), _rule(len(head)), *rows, "", comparison.note(result)]


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _fpga(result: Result) -> list[str]:
    head = (
        "| design | bits | density | device | LUTs | FFs | DSP | BRAM | MHz, routed "
        "| LUTs / fp16 | LUTs / int | cycles per inference | inferences/s |"
    )
    keys = ("luts_vs_fp16", "luts_vs_int", "cycles_per_inference", "inferences_per_second")
    rows = (
        f"| {row['design']} | {row['bits']} "
        f"| {'' if row['density'] is None else format(row['density'], '.0%')} | {row['device']} "
        f"| {row['luts']:,} | {row['ffs']:,} | {row['dsp']} | {row['bram']} "
        f"| {_maybe(row['fmax_mhz'])} | {' | '.join(_maybe(row[key]) for key in keys)} |"
        for row in result["rows"]
    )
    return [head, _rule(13), *rows]


def _maybe(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _devicetrain(result: Result) -> list[str]:
    head = (
        "| target | model | bits | density | instructions per image | dense / this | peak memory |"
    )
    rows = (
        f"| {row['target']} | {row['model']} | {row['bits']} | {row['density']:.0%} "
        f"| {row['instructions']:,} | {_times(row['ratio_dense'])} "
        f"| {_kb(row['peak_bytes']) if row['peak_bytes'] else ''} |"
        for row in result["rows"]
    )
    return [head, _rule(7), *rows]


def _fleet(result: Result) -> list[str]:
    head = (
        "| phases | devices | seconds per round | bytes per round, all devices "
        "| a device, idle | a device, at most |"
    )
    rows = (
        f"| {row['phases']} | {row['devices']} | {row['seconds_per_round']:.1f} "
        f"| {row['bytes_per_round']:,} | {_mb(row['device_idle_bytes'])} "
        f"| {_mb(row['device_peak_bytes'])} |"
        for row in result["rows"]
    )
    return [head, _rule(6), *rows]


TABLES: dict[str, Callable[[Result], list[str]]] = {
    "main-digits": _main_job,
    "wire": _wire,
    "sparsetrain": _sparsetrain,
    "run": _run,
    "client": _client,
    "cost": _cost,
    "intgemm": _intgemm,
    "l1norm": _l1norm,
    "inttrain": _inttrain,
    "inttrain-avx512": _inttrain,
    "inttrain-fashion-mnist": _intaccuracy,
    "infer": _infer,
    "exact": _exact,
    "device": _device,
    "devicetrain": _devicetrain,
    "fpga": _fpga,
    "fleet": _fleet,
}
"""Name of a table and of its file in results/ -> what writes its lines."""

FILES = {"intaccuracy": "inttrain-fashion-mnist"}
"""Benchmarks whose file has another name, for there may be more of its kind."""


def _tables(text: str, results: Path) -> dict[str, Callable[[Result], list[str]]]:
    """Return `TABLES` and one for every comparison that has a file or a place."""
    places = re.findall(r"<!-- table (compare-[\w-]+) -->", text)
    compared = {*places, *(path.stem for path in results.glob("compare-*.json"))}
    return {**TABLES, **dict.fromkeys(sorted(compared), _compare)}


def render(text: str, results: Path) -> str:
    """Return the text of the pages with every table written anew.

    A table whose file is not there yet may have an empty place in the text, or none.

    Args:
        text: All pages that hold tables, one after the other.
        results: Folder of the JSON files.

    Raises:
        ValueError: A table has no place in the text, but a file.
        FileNotFoundError: A table stands in the text, but its file is gone.
    """
    for name, write in _tables(text, results).items():
        path, mark = results / f"{name}.json", f"<!-- table {name} -->"
        if not path.exists() and (mark not in text or f"{mark}\n<!-- end -->" in text):
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        table = "\n".join([*write(result), "", _source(result)])
        place = re.compile(rf"({mark}\n).*?(<!-- end -->)", re.DOTALL)
        escaped = table.replace("\\", r"\\")
        text, found = place.subn(rf"\g<1>{escaped}\n\g<2>", text)
        if found != 1:
            raise ValueError(f"the pages have {found} places for table {name!r}; it needs one")
    return text


def _source(result: Result) -> str:
    seeds = result["seeds"] if "seeds" in result else [result["seed"]]
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    made = sorted({row.get("commit", result["commit"]) for row in result.get("rows", [result])})
    on = f" on {result['processor']}" if "processor" in result else ""
    return f"Made by `{result['command']}`, {named}, commit {', '.join(made)}{on}."


_NEXT_PAGE = "\0"


def pages(root: Path) -> list[Path]:
    """Return the pages that hold tables: README and those of docs/results."""
    return [root / "README.md", *sorted((root / "docs" / "results").glob("*.md"))]


def rendered(root: Path) -> dict[Path, str]:
    """Return path -> content of the pages that hold tables and of every comparison's pictures."""
    places, results = pages(root), root / "results"
    text = _NEXT_PAGE.join(page.read_text(encoding="utf-8") for page in places)
    drawn = {
        results / name: svg
        for path in sorted(results.glob("compare-*.json"))
        for name, svg in plots(path).items()
    }
    texts = render(with_summary(text, results), results).split(_NEXT_PAGE)
    return {**dict(zip(places, texts, strict=True)), **drawn}


def outdated(root: Path) -> list[Path]:
    """Return the files that differ from the results, and pictures that have none."""
    files = rendered(root)
    stray = [path for path in sorted(root.glob("results/*.svg")) if path not in files]
    return stray + [
        path
        for path, content in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]


def main() -> int:
    """Write tables and pictures; with `--check` only say whether they are up to date."""
    if "--check" in sys.argv:
        return int(bool(outdated(ROOT)))
    for path, content in rendered(ROOT).items():
        path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
