"""The command line does what its help says: files, tables, exit statuses, progress, interruption."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import TWO_MAPS, Command, assert_refused, command, tree, write
from onnx_text import feeds, run_ort

import rewriter
from rewriter import cli_show
from rewriter.cli_inputs import parse_shapes
from rewriter.egraph import Limits, Saturator
from rewriter.probe import probes
from rewriter.read_onnx import read_onnx
from rewriter.searched import Model
from rules import ALL

ROOT = Path(rewriter.__file__).resolve().parent.parent
COMMANDS = ("optimize", "compile", "bench", "check", "rules", "explain", "why-not", "merge")
X = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "in.onnx")


def shell(*arguments: object, **options: str) -> subprocess.CompletedProcess[str]:
    """``python -m rewriter`` in its own process, from another folder than the repository's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options}
    return subprocess.run(
        [sys.executable, "-m", "rewriter", *map(str, arguments)], check=False, cwd="/", capture_output=True, text=True, timeout=120, env=environment
    )


# --- help and usage


def test_version_and_help(run: Command) -> None:
    assert run("--version").out == f"rewriter {rewriter.__version__}\n"
    said = run("--help")
    assert said.status == 0 and not said.err
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", said.out, re.M)
        each = run(name, "--help")
        assert each.status == 0 and each.out.startswith(f"Usage: rewriter {name} ") and not each.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "Missing command; see `rewriter --help`"),
        (("optimise",), "Did you mean 'optimize'"),
        (("--no-such-option",), "--no-such-option"),
        (("optimize", "a.onnx"), "Missing argument 'OUT.onnx'"),
        (("optimize", "a.onnx", "b.onnx", "c.onnx"), "c.onnx"),
        (("optimize", "a.onnx", "b.onnx", "--objective", "beauty"), "'latency', 'memory'"),
        (("optimize", "a.onnx", "b.onnx", "--calibration", "c.npz"), "--calibration is for --budget"),
        (("compile", "a.onnx", "-o", "b", "--front", "c.svg"), "--front is for --budget"),
        (("merge", "a.onnx"), "Missing argument 'IN.onnx...'"),
        (("merge", "a.onnx", "b.onnx"), "Missing option '-o'"),
        (("merge", "a.onnx", "b.onnx", "-o", "a.onnx"), "'a.onnx' is named twice"),
        (("compile", "a.onnx"), "Missing option '-o'"),
        (("compile", "a.onnx", "-o", "b", "--backend", "abacus"), "no backend 'abacus'; there are 'auto', 'onnxruntime', 'tvm'"),
        (("compile", "a.onnx", "-o", "b", "--backend", "torch,abacus"), "no backend 'abacus'"),
        (("compile", "a.onnx", "-o", "b", "--backend", ""), "no backend ''"),
        (("compile", "a.onnx", "-o", "b", "--tune", "-1"), "--tune"),
        (("compile", "a.onnx", "-o", "b", "--threads", "0"), "--threads"),
        (("bench", "a.onnx", "--against", "abacus"), "no backend 'abacus'; there are onnxruntime, tvm, openvino, inductor, torch, reference"),
        (("check", "a.onnx"), "Missing argument 'B.onnx'"),
        (("why-not", "maps-add"), "Missing argument 'IN.onnx'"),
    ],
)
def test_wrong_usage_is_one_line(run: Command, arguments: tuple[str, ...], part: str) -> None:
    assert_refused(run(*arguments), part)


# --- merge


def test_merge_writes_one_model_of_several(run: Command, model: Path, tmp_path: Path) -> None:
    tuned = onnx.load(model)
    for weight in tuned.graph.initializer:
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(0.5), weight.name))
    onnx.save(tuned, tmp_path / "tuned.onnx")
    out = tmp_path / "out.onnx"
    assert run("merge", model, tmp_path / "tuned.onnx", model, "-o", out, "--ratio", "1").status == 0
    base, merged = ({t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer} for path in (model, out))
    assert base.keys() == merged.keys() and all((merged[n] >= base[n] - 1e-6).all() and (merged[n] <= base[n] + 0.5 + 1e-6).all() for n in base)
    assert_refused(run("merge", model, tmp_path / "gone.onnx", "-o", out), "gone.onnx")


# --- optimize


def test_optimize_writes_the_model_and_the_report(run: Command, model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    done = run("optimize", model, tmp_path / "out.onnx", "--report", tmp_path / "r.json")
    assert (done.status, done.err) == (0, "")
    assert sorted(tree(tmp_path)) == ["in.onnx", "out.onnx", "r.json"] and model.read_bytes() == before
    result = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(result, full_check=True)
    assert [n.op_type for n in result.graph.node] == ["MatMul", "Relu"]
    np.testing.assert_allclose(run_ort(result, {"x": X})[0], run_ort(onnx.load(model), {"x": X})[0], rtol=1e-5, atol=1e-4)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["before"]["ops"] == {"MatMul": 2, "Relu": 1} and report["after"]["ops"] == {"MatMul": 1, "Relu": 1}
    assert report["verification"]["passed"] is True and report["verification"]["inputs"] >= 4
    assert {r["rule"] for r in report["rewrites"]} == {"matmul/maps-compose"}
    assert re.search(r"^MatMul +2 +1$", done.out, re.M) and "equal to the original" in done.out


def test_options_of_optimize(run: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert run("optimize", model, out, "--disable", "maps-compose").status == 0
    assert [n.op_type for n in onnx.load(out).graph.node] == ["MatMul", "MatMul", "Relu"]
    assert run("optimize", model, out, "--input-shape", "x:5,3", "--objective", "memory").status == 0
    fixed = onnx.load(out).graph
    assert [d.dim_value for d in fixed.input[0].type.tensor_type.shape.dim] == [5, 3]
    assert [d.dim_value for d in fixed.output[0].type.tensor_type.shape.dim] == [5, 3]


def test_a_model_may_be_optimised_in_place(run: Command, model: Path, tmp_path: Path) -> None:
    want = run_ort(onnx.load(model), {"x": X})[0]
    assert run("optimize", model, model).status == 0
    assert sorted(tree(tmp_path)) == ["in.onnx"]
    assert len(onnx.load(model).graph.node) == 2
    np.testing.assert_allclose(run_ort(onnx.load(model), {"x": X})[0], want, rtol=1e-5, atol=1e-4)


def test_in_place_with_external_data(run: Command, tmp_path: Path) -> None:
    path = write(tmp_path / "in.onnx")
    proto = onnx.load(path)
    want = run_ort(proto, {"x": X})[0]
    onnx.save(proto, path, save_as_external_data=True, location="in.onnx.data", size_threshold=0)
    assert run("optimize", path, path).status == 0
    np.testing.assert_allclose(run_ort(onnx.load(path), {"x": X})[0], want, rtol=1e-5, atol=1e-4)


def test_an_existing_result_is_replaced(run: Command, model: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    out.write_text("old")
    report.write_text("old")
    assert run("optimize", model, out, "--report", report).status == 0
    assert len(onnx.load(out).graph.node) == 2 and json.loads(report.read_text())["after"]["nodes"] == 2
    assert sorted(tree(tmp_path)) == ["in.onnx", "out.onnx", "r.json"]


# --- compile and bench


def test_compile_writes_an_artefact_that_load_reads(run: Command, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artefact"
    done = run("compile", model, "-o", folder, "--backend", "onnxruntime", "--threads", "1", "--report", tmp_path / "r.json")
    assert (done.status, done.err) == (0, "") and "runs on onnxruntime" in done.out
    assert json.loads((tmp_path / "r.json").read_text())["backend"] == "onnxruntime"
    loaded = rewriter.load(folder)
    np.testing.assert_allclose(loaded(X), run_ort(onnx.load(model), {"x": X})[0], rtol=1e-5, atol=1e-4)
    again = run("compile", model, "-o", folder, "--backend", "torch")
    assert again.status == 0 and rewriter.load(folder).backend == "torch"
    assert sorted(p for p in os.listdir(tmp_path)) == ["artefact", "in.onnx", "r.json"]


def test_bench_of_a_file_and_of_an_artefact(run: Command, model: Path, tmp_path: Path) -> None:
    done = run("bench", model, "--rounds", "1", "--threads", "1", "--input-shape", "x:2,3")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["median", "ms", "min", "ms", "relative"]
    assert re.match(r"rewriter \((onnxruntime|openvino)\) ", lines[1]) and lines[1].endswith(" 1.00x")
    assert re.fullmatch(r"onnxruntime +[\d.e-]+ +[\d.e-]+ +\d+\.\d\dx", lines[2])
    run("compile", model, "-o", tmp_path / "a", "--backend", "reference")
    assert not (tmp_path / "a").exists()
    run("compile", model, "-o", tmp_path / "a", "--backend", "onnxruntime")
    done = run("bench", tmp_path / "a", "--against", "reference,onnxruntime", "--rounds", "1")
    assert done.status == 0 and [line.split()[0] for line in done.out.splitlines()[1:]] == ["rewriter", "reference", "onnxruntime"]


def test_bench_says_who_did_not_run(run: Command, tmp_path: Path) -> None:
    body = TWO_MAPS.replace("Relu(u)", "com.microsoft.Gelu(u)")
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]>\n{body}')
    onnx.save(proto, tmp_path / "in.onnx")
    done = run("bench", tmp_path / "in.onnx", "--against", "onnxruntime,reference", "--rounds", "1")
    assert done.status == 0, done.err
    assert re.search(r"^reference +- +- +-$", done.out, re.M) and re.search(r"^reference did not run: .*Gelu", done.out, re.M)


# --- check


def test_check_says_equal(run: Command, model: Path, tmp_path: Path) -> None:
    run("optimize", model, tmp_path / "out.onnx")
    done = run("check", model, tmp_path / "out.onnx")
    assert (done.status, done.err) == (0, "") and re.fullmatch(r"equal: max error \S+ on 4 inputs\n", done.out)
    run("optimize", model, tmp_path / "fixed.onnx", "--input-shape", "x:7,3")
    assert run("check", model, tmp_path / "fixed.onnx").status == 0
    assert run("check", tmp_path / "fixed.onnx", model).status == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("8, 9}, float[3, 3] v", "8, 9.1}, float[3, 3] v"), "output 0 on"),
        (("y = Relu(u)", "y = Abs(u)"), "output 0 on"),
        (("float[n, 3] x", "float[n, 3] z"), "the inputs are x in one and z in the other"),
        (("(float[n, 3] y)", "(float[n, 3] y, float[n, 3] t)"), "the outputs are y in one and y, t in the other"),
        (("float", "double"), "input 'x' is FLOAT in one and DOUBLE in the other"),
        (("float[n, 3] x", "float[3] x"), "input 'x' has shape"),
    ],
)
def test_check_says_what_differs(run: Command, model: Path, tmp_path: Path, change: tuple[str, str], said: str) -> None:
    body = TWO_MAPS.replace(*change).replace("MatMul(x", "MatMul(z" if "z" in change[1] else "MatMul(x")
    if change[1] == "float[3] x":
        body = body.replace("(float[n, 3] y)", "(float[3] y)")
    done = run("check", model, write(tmp_path / "other.onnx", body))
    assert (done.status, done.err) == (1, ""), done
    assert done.out.startswith("different: ") and said in done.out and done.out.count("\n") == 1


# --- rules, explain, why-not


def test_rules_lists_and_filters(run: Command) -> None:
    everything = run("rules").out.splitlines()
    assert len(everything) == 1 + len(ALL)
    found = run("rules", "MAPS", "compose").out.splitlines()[1:]
    assert len(found) == 1 and re.fullmatch(r"matmul/maps-compose  \(x·A \+ b\)·B \+ c == .*  reals +R1, R5.*", found[0])
    assert all("bits" in line for line in run("rules", "bits").out.splitlines()[1:])
    assert_refused(run("rules", "quantum"), "no rule contains 'quantum'", status=1)


def test_explain_names_sites_and_the_rules_that_are_needed(run: Command, model: Path, tmp_path: Path) -> None:
    done = run("explain", model)
    assert (done.status, done.err) == (0, "")
    assert "matmul/maps-compose: (x·A + b)·B + c == x·(A·B) + (b·B + c)\n    at 'u'\n" in done.out
    assert "rules needed for this cost: matmul/maps-compose\n" in done.out
    relu = write(tmp_path / "relu.onnx", "main (float[n] x) => (float[n] y) { y = Relu(x) }")
    assert run("explain", relu).out == "no rule changes this model\n"
    ones = write(tmp_path / "ones.onnx", "main (float[n, 3] x) => (float[n, 3] y) <float[3] s = {1, 1, 1}> { a = Exp(x)  b = Mul(a, s)  y = Sigmoid(b) }")
    assert "identity/scale-by-one: x * 1 == x\n    at 'b'\n" in run("explain", ones).out


SIDE_BY_SIDE = """main (float[n, 3] x) => (float[n, 3] y)
    <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3, 3] v = {1, 0, 3, 4, 5, 6, 0, 8, 9}> {
        t = MatMul(x, w)
        s = Relu(t)
        a = MatMul(s, v)
        b = MatMul(x, v)
        y = Add(a, b)
    }"""


@pytest.mark.parametrize(
    ("rule", "body", "said"),
    [
        ("maps-compose", TWO_MAPS, ["applied 1 times: at 'u'"]),
        ("matmul/maps_compose", TWO_MAPS, ["applied 1 times: at 'u'"]),
        ("maps-add", SIDE_BY_SIDE, ["nearest place: 'y', where add(linear(x, A, b), linear(x', B, c)) stands", "'s', made by Relu"]),
        ("sum-with-zero-map", SIDE_BY_SIDE, ["'y', where add(u, linear(x, A, b)) stands", "A (the weight 'v') is not zero throughout"]),
        ("maps-compose", SIDE_BY_SIDE, ["where linear(?, B, c) stands", "and not linear(x, A, b)"]),
        ("kernels-add", TWO_MAPS, ["its left side stands nowhere"]),
    ],
)
def test_why_not_names_the_place_and_what_is_missing(run: Command, tmp_path: Path, rule: str, body: str, said: list[str]) -> None:
    done = run("why-not", rule, write(tmp_path / "in.onnx", body))
    assert (done.status, done.err) == (0, "")
    for part in said:
        assert part in done.out, done.out


def test_why_not_a_rule_that_is_no_rule(run: Command, model: Path) -> None:
    assert_refused(run("why-not", "maps-compse", model), "no rule 'maps-compse'; did you mean 'maps-compose'?")


def test_every_law_can_be_looked_for(model: Path) -> None:
    """egglog takes the probes of all rules, and each rule's first one is its whole left side."""
    terms = Model(read_onnx(model))
    lines = [line for rule in ALL for probe in probes(rule) for line in probe.lines(rule)]
    with Saturator() as saturator:
        (found,) = terms.search(ALL, saturator, Limits(), lines)
    assert len(found.frozen.near) == len(lines) // 2 > 2 * len(ALL)
    for rule in ALL:
        assert probes(rule)[0].pattern == rule.patterns()[0]
        assert [p.size for p in probes(rule)] == sorted((p.size for p in probes(rule)), reverse=True)


# --- terminals, pipes, signals


def test_python_dash_m_is_the_same_program(model: Path, tmp_path: Path) -> None:
    done = shell("check", model, model)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("equal: max error 0 ")
    done = shell("check", model, tmp_path / "no.onnx")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_a_terminal_gets_a_table_and_a_pipe_plain_text(run: Command) -> None:
    inner, outer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    child = subprocess.Popen([sys.executable, "-m", "rewriter", "rules", "maps-compose"], stdout=outer, cwd=ROOT, env=environment)
    os.close(outer)
    seen = b""
    try:
        while chunk := os.read(inner, 4096):
            seen += chunk
    except OSError:  # the terminal's end
        pass
    os.close(inner)
    assert child.wait(30) == 0
    assert b"\x1b[" in seen and b"maps-compose" in seen
    assert "\x1b" not in run("rules").out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_only_on_a_terminal_and_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(cli_show, "PATIENCE", 0.05)
    for screen, pause, shown in ((Terminal(), 0.4, True), (Terminal(), 0.0, False), (io.StringIO(), 0.4, False)):
        monkeypatch.setattr(sys, "stderr", screen)
        with cli_show.Progress() as step:
            step("searching")
            time.sleep(pause)
        assert ("searching ..." in screen.getvalue()) is shown


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    line = f"{sys.executable} -m rewriter rules | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.count("\n") == 1


SLOW = """
import sys, time
import rewriter.pipeline as pipeline
from rewriter.__main__ import main
class Slow:
    class report:
        to_json = staticmethod(lambda: "{}")
    def save(self, path):
        print("go", flush=True)
        time.sleep(60)
pipeline.optimize = lambda *a, **k: Slow()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(model: Path, tmp_path: Path, number: int, status: int) -> None:
    """The signal comes while results are being written."""
    before = tree(tmp_path)
    arguments = ["optimize", str(model), str(tmp_path / "out.onnx"), "--report", str(tmp_path / "r.json")]
    child = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "go\n"
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == status
    assert said == ("rewriter: interrupted; nothing was written\n" if number == signal.SIGINT else "")
    assert tree(tmp_path) == before


def test_a_bug_is_one_line_and_its_traceback_on_request(run: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("rewriter.pipeline.optimize", broken)
    done = run("optimize", model, model)
    assert (done.status, done.err) == (2, "rewriter: ZeroDivisionError: a b: this is a bug; REWRITER_TRACEBACK=1 shows where\n")
    monkeypatch.setenv("REWRITER_TRACEBACK", "1")
    done = run("optimize", model, model)
    assert done.status == 2 and "in broken" in done.err and done.err.splitlines()[-1].startswith("rewriter: ZeroDivisionError")


def test_a_failed_verification_is_a_no(run: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise rewriter.VerificationFailed("the model is not deterministic")

    monkeypatch.setattr("rewriter.pipeline.optimize", broken)
    assert_refused(run("optimize", model, tmp_path / "out.onnx"), "not deterministic", status=1)
    assert not (tmp_path / "out.onnx").exists()


def test_shapes_are_parsed() -> None:
    assert parse_shapes(["x:1,3", "a:b:0: 2 , 5", "scalar:"]) == {"x": (1, 3), "a:b:0": (2, 5), "scalar": ()}
    assert len(feeds(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{TWO_MAPS}'), 0, n=2)) == 1
