"""Write the result tables from `results/*.json`: `python -m fedkit.bench.readme [--check]`.

They stand in README and in the pages of docs/results. A table stands between two comment lines with
the name of its file, and carries the command and the commit that made its figures; code that no
commit has makes none. Nothing in it is written by hand. What a table looks like, the file's
benchmark says. Each `results/compare-*.json` of several densities has two pictures
too, which are drawn beside it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkit.bench import markdown
from fedkit.bench.registry import BENCHMARKS
from fedkit.bench.summary import with_summary
from fedkit.core.errors import ConfigError, FedkitError
from fedkit.report import comparison
from fedkit.report.job_plots import job_plots
from fedkit.report.plots import plots

ROOT = Path(__file__).resolve().parents[2]
Result = Mapping[str, Any]


def _main_job(result: Result) -> list[str]:
    up, down = result["bytes_up"], result["bytes_down"]
    rows = {
        "accuracy of the dense start": f"{result['accuracy_dense_start']:.2%}",
        "accuracy of the selected candidate, untrained": f"{result['accuracy_selected']:.2%}",
        "accuracy of the final sparse model": f"{result['accuracy_sparse']:.2%}",
        "accuracy of its int8 artifact": f"{result['accuracy_int8']:.2%}",
        "accuracy of dense FedAvg, same rounds": f"{result['accuracy_dense_fedavg']:.2%}",
        "density": f"{result['density']:.2%}",
        "bytes down / up, all devices": f"{markdown.mb(down)} / {markdown.mb(up)}",
        "bytes of dense FedAvg, both ways": f"{markdown.mb(result['bytes_dense_fedavg'])} "
        f"({result['bytes_dense_fedavg'] / (up + down):.1f} times as many)",
        "seconds of the sparse rounds": f"{result['seconds']:.0f}",
        "artifact": f"{result['artifact_bytes'] / 1e3:.1f} kB .tflite",
        "latency in LiteRT, one thread, same machine": f"{result['latency_median_us']:.0f} us",
    }
    return [
        "| | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]


def _compare(result: Result) -> list[str]:
    head, lines = comparison.table(result)
    first, *rows = (f"| {' | '.join(cells)} |" for cells in [head, *lines])
    return [*markdown.table(first, rows), "", comparison.note(result)]


OTHERS: dict[str, Callable[[Result], list[str]]] = {"main-digits": _main_job, "compare": _compare}
"""What has a table and is no benchmark -> what writes its lines."""


def _lines(result: Result, path: Path) -> list[str]:
    kind = result.get("benchmark", path.stem)
    if kind in OTHERS:
        return OTHERS[kind](result)
    if kind not in BENCHMARKS:
        raise ConfigError(
            f"{path} is of the benchmark {kind!r}, and there is none of that name: remove the file"
        )
    return BENCHMARKS[kind].table(result)


def render(text: str, results: Path) -> str:
    """Return the text of the pages with every table written anew.

    A table whose file is not there yet may have an empty place in the text, or none.

    Args:
        text: All pages that hold tables, one after the other.
        results: Folder of the JSON files.

    Raises:
        ConfigError: A file is of code that no commit has, or of no benchmark.
        ValueError: A table has no place in the text, but a file.
        FileNotFoundError: A table stands in the text, but its file is gone.
    """
    places = re.findall(r"<!-- table ([\w-]+) -->", text)
    for name in sorted({*places, *(path.stem for path in results.glob("*.json"))}):
        path, mark = results / f"{name}.json", f"<!-- table {name} -->"
        if not path.exists() and f"{mark}\n<!-- end -->" in text:
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        _check_committed(result, path)
        if lines := _lines(result, path):
            text = _placed(text, mark, [*lines, "", _source(result)])
    return text


def _placed(text: str, mark: str, lines: Sequence[str]) -> str:
    table = "\n".join(lines).replace("\\", r"\\")
    place = re.compile(rf"({mark}\n).*?(<!-- end -->)", re.DOTALL)
    text, found = place.subn(rf"\g<1>{table}\n\g<2>", text)
    if found != 1:
        raise ValueError(f"the pages have {found} places for {mark}; it needs one")
    return text


def _check_committed(result: Result, path: Path) -> None:
    """Refuse figures that nobody can make again, as the code was changed and not committed."""
    made = {result["commit"], *_commits(result)}
    if changed := sorted(commit for commit in made if commit.endswith("-dirty")):
        kept = f"build/{path.stem}"
        raise ConfigError(
            f"{path} was measured with code that no commit has ({', '.join(changed)}); commit the "
            f"code and make it anew: `mkdir -p build; {result['command']} > {kept}; "
            f"tail -n 1 {kept} | python -m json.tool - {path}`"
        )


def _commits(result: Result) -> set[str]:
    return {row.get("commit", result["commit"]) for row in result.get("rows", [result])}


def _source(result: Result) -> str:
    seeds = result["seeds"] if "seeds" in result else [result["seed"]]
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    made = ", ".join(sorted(_commits(result)))
    on = f" on {result['processor']}" if "processor" in result else ""
    return f"Made by `{result['command']}`, {named}, commit {made}{on}."


_NEXT_PAGE = "\0"


def pages(root: Path) -> list[Path]:
    """Return the pages that hold tables: README and those of docs/results."""
    return [root / "README.md", *sorted((root / "docs" / "results").glob("*.md"))]


def rendered(root: Path) -> dict[Path, str]:
    """Return path -> content of the pages that hold tables, and of the pictures of results."""
    places, results = pages(root), root / "results"
    text = _NEXT_PAGE.join(page.read_text(encoding="utf-8") for page in places)
    drawn = {
        results / name: svg
        for pattern, draw in (("compare-*.json", plots), ("jobs.json", job_plots))
        for path in sorted(results.glob(pattern))
        for name, svg in draw(path).items()
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
    try:
        if "--check" in sys.argv:
            return int(bool(outdated(ROOT)))
        for path, content in rendered(ROOT).items():
            path.write_text(content, encoding="utf-8")
    except FedkitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
