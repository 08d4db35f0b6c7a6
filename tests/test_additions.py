"""What a new method, benchmark, target or op touches: the files that its how-to page names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_architecture as architecture
from tests.imports import read_imports

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "how-to"
FILE = re.compile(
    r"^`([\w/.]+\.py)`:\n\n(?:<!-- not run: [^\n]+ -->\n\n)?```python\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIST = "edge/targets/registry.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages and their tests."""
    for name in ("fedkit", "edge", "sim", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)  # what is compiled already, too
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add(tree: Path, page: str) -> list[str]:
    """Write the files that a page shows; return their names."""
    found = FILE.findall((PAGES / page).read_text(encoding="utf-8"))
    for name, content in found:
        path = tree / name
        assert not path.exists(), f"{name} is there already; the page must add it"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [name for name, _ in found]


def commands(page: str) -> list[list[str]]:
    """Return the commands that a page gives."""
    (text,) = COMMAND.findall((PAGES / page).read_text(encoding="utf-8"))
    return [line.split() for line in text.splitlines()]


def python(tree: Path, *arguments: str) -> str:
    """Run Python with the packages of a tree; return what it writes."""
    wide = {"COLUMNS": "300", "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **wide, "PYTHONPATH": str(tree)}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def assert_keeps_the_architecture(tree: Path) -> None:
    imports = read_imports(tree)
    assert architecture.homeless(imports) == []
    assert architecture.upward(imports) == []
    assert architecture.cycle(imports) == []
    for rule in architecture.ARROW_RULES:
        assert architecture.breaches(imports, rule) == []


@pytest.mark.slow
def test_a_method_is_one_file_and_inherits_the_tests_of_all(tree: Path) -> None:
    assert add(tree, "add-a-method.md") == ["fedkit/methods/random_rows.py"]
    assert_keeps_the_architecture(tree)
    run, (tests, *arguments) = commands("add-a-method.md")
    assert run[:2] == ["fedkit", "run"] and "random-rows" in run
    kept = "test_a_small_run_keeps_its_budget or test_a_row_says"
    told = python(tree, "-m", tests, "-q", *arguments[:-1], f"random-rows and ({kept})")
    assert re.search(r"^2 passed", told, re.MULTILINE), told


def test_methods_of_one_name_are_refused(tree: Path) -> None:
    (tree / "fedkit/methods/other.py").write_text(
        "from fedkit.methods.snip import SNIP\nMETHODS = {'erk': SNIP}\n"
    )
    code = (
        "from fedkit.core.errors import ConfigError\n"
        "try:\n    import fedkit.methods.registry\n"
        "except ConfigError as error:\n    print(error)"
    )
    told = python(tree, "-c", code)
    assert told == (
        "fedkit.methods.random_masks and fedkit.methods.other both have a method 'erk'; "
        "rename one\n"
    )


def test_finding_the_methods_imports_no_torch() -> None:
    code = "import sys, fedkit.methods.registry\nprint('torch' in sys.modules)"
    assert python(ROOT, "-c", code) == "False\n"


def test_a_benchmark_is_one_file(tree: Path) -> None:
    assert add(tree, "add-a-benchmark.md") == ["fedkit/bench/ranking.py"]
    assert_keeps_the_architecture(tree)
    ((program, *arguments),) = commands("add-a-benchmark.md")
    result = json.loads(python(tree, "-m", program, *arguments).splitlines()[-1])
    assert result["benchmark"] == "ranking" and len(result["rows"]) == 1
    assert "ranking" in python(tree, "-m", "fedkit", "bench", "--help")
    listed = python(tree, "-m", "fedkit.bench.registry").splitlines()
    assert "ranking\thow long it takes to find the largest of many numbers." in listed

    (tree / "results").mkdir()
    (tree / "results/ranking.json").write_text(json.dumps({**result, "commit": "c0ffee"}))
    (tree / "README.md").write_text("<!-- table ranking -->\n<!-- end -->\n")
    python(tree, "-m", "fedkit.bench.readme")
    assert "| numbers | us |\n|---|---|\n| 10,000 | " in (tree / "README.md").read_text()


@pytest.mark.slow
def test_an_op_that_trains_is_one_file_and_inherits_the_tests_of_all(tree: Path) -> None:
    files = ["fedkit/engine/ops/softsign.py", "tests/engine/ops/softsign.py"]
    assert add(tree, "add-a-trained-op.md") == files
    assert_keeps_the_architecture(tree)
    ((tests, *arguments),) = commands("add-a-trained-op.md")
    told = python(tree, "-m", tests, "-q", *arguments)
    assert re.search(r"^1[0-9] passed", told, re.MULTILINE), told

    (tree / files[1]).unlink()
    code = "from tests.engine.ops import test_conformance as t; t.test_every_op_has_a_meaning()"
    told = python(tree, "-c", f"try:\n    {code}\nexcept AssertionError:\n    print('no meaning')")
    assert told == "no meaning\n"


USES = """
import sys
from pathlib import Path

import numpy as np

from fedkit.graph import ir
from edge.check import check
from edge.inspect import inspect
from edge.runners import open_runner
from edge.save import save, save_graph
from fedkit.cli.export import Form
from tests.edge.random_graphs import a_graph

folder = Path(sys.argv[1])
graph, _ = a_graph(np.random.default_rng(0))
whole = save_graph(graph, folder / "model.graph", {})
about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
shape = graph.tensors[graph.inputs[0]].shape[1:]
order = (shape[-1], *shape[:-1])
examples = np.random.default_rng(0).standard_normal((3, *order)).astype(np.float32)
saved = save("whole", graph, examples, folder / "model.whole", about)
report = check(saved.path, examples, layers=True)
assert report.mismatches == 0 and report.layers and report.outputs.integers
integers = open_runner(saved.path).quantize(examples)
same = open_runner(saved.path, "interpreter").predict_int8(integers)
assert np.array_equal(open_runner(saved.path).predict_int8(integers), same)
assert len(inspect(saved, graph)) == len(graph.ops)
assert Form(("whole",)).targets == ("whole",)
"""


def test_a_target_is_one_package_and_a_name_in_one_list(tree: Path, tmp_path: Path) -> None:
    files = add(tree, "add-a-target.md")
    assert {str(Path(name).parent) for name in files} == {"edge/targets/whole"}
    text = (tree / LIST).read_text(encoding="utf-8")
    with_name, count = re.subn(r"^(NAMES = \(.*)\)$", r'\1, "whole")', text, flags=re.MULTILINE)
    assert count == 1 and LIST in (PAGES / "add-a-target.md").read_text(encoding="utf-8")
    (tree / LIST).write_text(with_name, encoding="utf-8")
    assert_keeps_the_architecture(tree)
    python(tree, "-c", USES, str(tmp_path))
    assert "whole" in python(tree, "-m", "fedkit", "export", "--help")
    for program, command, *_ in commands("add-a-target.md"):
        assert (program, command) in {
            ("fedkit", each) for each in ("export", "eval", "check", "inspect")
        }


USES_OP = """
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edge import graph_file
from edge.cost import cost
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, load_onnx
from edge.save import save
from edge.targets.registry import NAMES
from fedkit.cli.support import op_rows
from fedkit.core.errors import ExportError
from fedkit.graph.interpret import evaluate

random = np.random.default_rng(0)
weight = random.standard_normal((5, 4)).astype(np.float32)
nodes = [
    helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
    helper.make_node("Softsign", ["h"], ["s"]),
    helper.make_node("Add", ["s", "s"], ["y"]),
]
ports = [
    helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
    for name, size in (("x", 4), ("y", 5))
]
constants = [numpy_helper.from_array(weight, "w")]
made = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

x = random.standard_normal((50, 4)).astype(np.float32)
hidden = x @ weight.T
wanted = 2 * hidden / (1 + np.abs(hidden))
floats = load_onnx(model.SerializeToString())
np.testing.assert_allclose(evaluate(floats, x), wanted, rtol=1e-5, atol=1e-5)

graph = int8_graph(floats, x)
first, last = (graph.tensors[name] for name in (graph.inputs[0], graph.outputs[0]))
codes = np.clip(np.rint(x / first.scale) + first.zero_point, -128, 127).astype(np.int8)
found = (evaluate_int8(graph, codes).astype(int) - last.zero_point) * last.scale
assert np.abs(found - wanted).max() < 0.1
again = graph_file.from_bytes(graph_file.to_bytes(graph))
np.testing.assert_array_equal(evaluate_int8(again, codes), evaluate_int8(graph, codes))
assert cost(graph).macs == 20
for name in NAMES:
    try:
        save(name, graph, x, Path(sys.argv[1]) / name, {})
    except ExportError as error:
        assert "softsign" in str(error), error
    else:
        raise AssertionError(name)
said = next(row for row in op_rows() if row["op"] == "softsign")
assert said["onnx_reader"] == said["interpreter"] == "yes"
assert {said[part] for part in ("torch_reader", "sparse_engine", *NAMES)} == {"no"}
"""


@pytest.mark.slow
def test_an_op_is_one_file_on_each_side_and_inherits_the_tests_of_all(
    tree: Path, tmp_path: Path
) -> None:
    files = add(tree, "add-an-op.md")
    assert files == ["fedkit/graph/ops/softsign.py", "edge/ops/softsign.py"]
    assert_keeps_the_architecture(tree)
    python(tree, "-c", USES_OP, str(tmp_path))
    ((tests, *arguments),) = commands("add-an-op.md")
    told = python(tree, "-m", tests, "-q", *arguments)
    assert re.search(r"^\d\d passed", told, re.MULTILINE), told


@pytest.mark.slow
def test_an_op_that_computes_something_else_in_integers_is_found(tree: Path) -> None:
    add(tree, "add-an-op.md")
    path = tree / "edge/ops/softsign.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("1 + np.abs(real)", "2 + np.abs(real)"), encoding="utf-8")
    ((tests, *arguments),) = commands("add-an-op.md")
    with pytest.raises(AssertionError, match="test_our_integers_are_within_a_step_of_the_floats"):
        python(tree, "-m", tests, "-q", *arguments)
