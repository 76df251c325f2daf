"""The command line: ``rewriter`` and ``python -m rewriter``.

Exit status: 0 done, 1 the answer is no (``check``, a failed verification), 2 bad usage or bad input, 130 interrupted. Whatever goes
wrong is one line on standard error; REWRITER_TRACEBACK=1 also shows where it came from. Results go to standard output, tables
there are plain text when piped, and files are written whole or not at all.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from backends import ENGINES
from rewriter import __version__
from rewriter.errors import RewriterError, VerificationFailed

NO, BAD, INTERRUPTED = 1, 2, 130


class _Interrupted(Exception):
    """Ctrl-C, on its way out."""


class _Program(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None  # click would answer with an empty line of its own


@click.group(cls=_Program, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="rewriter", message="%(prog)s %(version)s")
def program() -> None:
    """Compile trained ONNX models into the cheapest graph that computes the same."""


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _input_shape() -> Decorator:
    return click.option("--input-shape", "shapes", multiple=True, metavar="NAME:SIZES", help="Fix a shape, as in x:1,3,224,224 (repeatable).")


def _disable() -> Decorator:
    return click.option("--disable", multiple=True, metavar="RULE", help="Leave out a rule, by name (repeatable; see `rewriter rules`).")


def _report() -> Decorator:
    return click.option("--report", metavar="FILE.json", help="Write the full report as JSON.")


def _objective() -> Decorator:
    return click.option("--objective", type=click.Choice(["latency", "memory"]), default="latency", show_default=True, help="What to make small.")


def _approximate() -> Decorator:
    """``--budget``, ``--calibration``, ``--front``."""
    options = (
        click.option("--budget", type=float, metavar="ERROR", help="Allow this much normalised error of the outputs (0.01: one percent)."),
        click.option("--calibration", metavar="FILE.npz", help="Inputs like those the model will meet, by name, to measure errors on."),
        click.option("--front", metavar="FILE.svg", help="Draw error against latency and bytes of what could be had."),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _backend() -> Decorator:
    which = f"What runs it: {', '.join(ENGINES)}; of several, the fastest."
    return click.option("--backend", default="auto", show_default=True, metavar="NAME,...", help=which)


def _threads() -> Decorator:
    return click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads of the backend [default: all physical cores].")


@program.command()
@click.argument("source", metavar="IN.onnx")
@click.argument("target", metavar="OUT.onnx")
@_input_shape()
@_disable()
@_report()
@_objective()
@_approximate()
def optimize(source: str, target: str, shapes: Sequence[str], report: str | None, front: str | None, **options: Any) -> None:
    """Write the cheapest equal model of IN.onnx to OUT.onnx; with --budget, one that may be a little off."""
    from rewriter.cli_files import staged, writable_file
    from rewriter.cli_inputs import check_budget, parse_shapes
    from rewriter.cli_show import Progress, picture, summary

    check_budget(options["budget"], options["calibration"], front)
    writable_file(target)
    for path in (p for p in (report, front) if p is not None):
        writable_file(path, others=(source, target))
    sizes = parse_shapes(shapes)
    with Progress() as step:
        from rewriter.pipeline import optimize

        result = optimize(source, input_shapes=sizes or None, step=step, **options)
        step("writing")
        with staged(report, result.report.to_json() + "\n"), staged(front, picture(result.report) if front is not None else ""):
            result.save(target)
    summary(result.report)


@program.command()
@click.argument("source", metavar="IN.onnx")
@click.option("-o", "--output", "folder", required=True, metavar="DIR", help="Folder for the result; an older result there is replaced.")
@_backend()
@click.option("--target", default="cpu", show_default=True, metavar="cpu|cuda|cuda:sm_NN", help="What it will run on; a GPU need not be here.")
@click.option("--tune", type=click.IntRange(min=0), default=0, metavar="N", help="Trials for finding faster kernels [default: 0].")
@_threads()
@_input_shape()
@_disable()
@_report()
@_objective()
@_approximate()
def compile(source: str, folder: str, report: str | None, front: str | None, shapes: Sequence[str], **options: Any) -> None:
    """Compile IN.onnx into a folder that rewriter.load reads, without PyTorch."""
    from rewriter.cli_files import staged, writable_artefact, writable_file
    from rewriter.cli_inputs import check_budget, parse_backend, parse_shapes
    from rewriter.cli_show import Progress, picture, summary

    check_budget(options["budget"], options["calibration"], front)
    parse_backend(options["backend"])
    writable_artefact(folder)
    for path in (p for p in (report, front) if p is not None):
        writable_file(path, others=(source, folder))
    sizes = parse_shapes(shapes)
    with Progress() as step:
        from rewriter.pipeline import compile

        result = compile(source, input_shapes=sizes or None, step=step, **options)
        step("writing")
        with staged(report, result.report.to_json() + "\n"), staged(front, picture(result.report) if front is not None else ""):
            result.save(folder)
    summary(result.report)
    print(f"runs on {result.backend}")


@program.command()
@click.argument("source", metavar="IN.onnx|DIR")
@click.option("--against", default="onnxruntime", show_default=True, metavar="NAMES", help="Backends to compare with, separated by commas.")
@_backend()
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="How often the candidates take turns.")
@_threads()
@_input_shape()
def bench(source: str, against: str, backend: str, rounds: int, threads: int | None, shapes: Sequence[str]) -> int:
    """Time the compiled model against other ways to run it: alternating rounds, a process each.

    IN.onnx is compiled first, for --backend, and the others run the file as it is; of a compiled folder DIR they run its model.
    """
    from rewriter.cli_inputs import parse_backend, parse_shapes
    from rewriter.cli_show import Progress, table

    parse_backend(backend)
    sizes = parse_shapes(shapes)
    with Progress() as step:
        from rewriter import cli_bench

        names = cli_bench.parse_against(against)
        timings, ran = cli_bench.bench(source, names, backend=backend, threads=threads, rounds=rounds, shapes=sizes, step=step)
    table(("", "median ms", "min ms", "relative"), cli_bench.rows(timings, ran))
    for name, timing in timings.items():
        if timing.failure is not None:
            print(f"{name} did not run: {timing.failure}")
    return NO if timings[cli_bench.OURS].failure is not None else 0


@program.command()
@click.argument("base", metavar="BASE.onnx")
@click.argument("sources", nargs=-1, required=True, metavar="IN.onnx...")
@click.option("-o", "--output", "target", required=True, metavar="OUT.onnx", help="The merged model.")
@click.option("--ratio", type=float, default=0.1, show_default=True, help="Part of each model's weights that may change the base's.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="Factor of the changes.")
@click.option("--keep", multiple=True, metavar="PATTERN", help="Weights that stay the base's, as in 'head.*' (repeatable).")
def merge(base: str, sources: Sequence[str], target: str, ratio: float, scale: float, keep: Sequence[str]) -> None:
    """Write one model of several that were trained from BASE.onnx: parameter competition balancing. It is no equality: measure it."""
    from rewriter.cli_files import writable_file
    from rewriter.cli_show import Progress

    writable_file(target, others=(base, *sources))
    with Progress() as step:
        from rewriter.merging import merge
        from rewriter.write_onnx import write_onnx

        step("merging")
        write_onnx(merge(sources, base=base, ratio=ratio, scale=scale, keep=keep), target)


@program.command()
@click.argument("one", metavar="A.onnx")
@click.argument("other", metavar="B.onnx")
def check(one: str, other: str) -> int:
    """Do A.onnx and B.onnx compute the same? Exit status 0 if so, 1 if not, and a line that says what differs."""
    from rewriter.cli_show import Progress

    with Progress() as step:
        from rewriter.cli_check import check

        verdict = check(one, other, step)
    if verdict.passed:
        print(f"equal: max error {verdict.max_abs_error:.3g} on {verdict.inputs} inputs")
        return 0
    print(f"different: {verdict.reason}")
    return NO


@program.command()
@click.argument("text", nargs=-1, metavar="[TEXT]")
def rules(text: tuple[str, ...]) -> int:
    """List the rules: name, statement, equality, citation. With TEXT, those that contain it."""
    from rewriter.cli_rules import matching, rows
    from rewriter.cli_show import table
    from rules import ALL

    found = matching(" ".join(text), ALL)
    if not found:
        return _complain(f"no rule contains {' '.join(text)!r}: `rewriter rules` lists all {len(ALL)}", NO)
    table(("rule", "statement", "equality", "citation"), rows(found), left=4)
    return 0


@program.command()
@click.argument("source", metavar="IN.onnx")
@_input_shape()
def explain(source: str, shapes: Sequence[str]) -> None:
    """What would be rewritten where, by which rules, and which of them are needed."""
    from rewriter.cli_inputs import parse_shapes
    from rewriter.cli_show import Progress
    from rules import ALL

    sizes = parse_shapes(shapes)
    with Progress() as step:
        from rewriter.read_onnx import read_onnx
        from rewriter.why import explain

        step("reading")
        model = read_onnx(source, input_shapes=sizes or None)
        step("searching, and dropping rules one at a time")
        found = explain(model, ALL)
    for line in found.lines():
        print(line)


@program.command("why-not")
@click.argument("name", metavar="RULE")
@click.argument("source", metavar="IN.onnx")
@_input_shape()
def why_not(name: str, source: str, shapes: Sequence[str]) -> None:
    """Why RULE did not apply to IN.onnx: the nearest place, and what is missing there."""
    from rewriter.cli_inputs import parse_shapes
    from rewriter.cli_show import Progress
    from rules import ALL

    sizes = parse_shapes(shapes)
    with Progress() as step:
        from rewriter.read_onnx import read_onnx
        from rewriter.searched import find_rule
        from rewriter.why import why_not

        rule = find_rule(name, ALL)
        step("reading")
        model = read_onnx(source, input_shapes=sizes or None)
        step("searching")
        answer = why_not(rule, model, ALL)
    for line in answer.lines():
        print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. Never raises for what a user or a file did."""
    with _ending_well(), warnings.catch_warnings():
        if not _debugging():
            warnings.simplefilter("ignore")
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = program.main(None if arguments is None else list(arguments), prog_name="rewriter", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        return _complain(_usage(error), BAD)
    except VerificationFailed as error:
        return _complain(str(error), NO)
    except RewriterError as error:
        return _complain(str(error), BAD)
    except (_Interrupted, KeyboardInterrupt, click.Abort):
        return _complain("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        return _reader_left()
    except MemoryError:
        return _complain("out of memory; nothing was written", BAD)
    except OSError as error:
        return _complain(f"{error.filename or 'the system'}: {error.strerror or error}", BAD)
    except Exception as error:  # noqa: BLE001 - the last resort: a user gets a line, not a traceback
        return _complain(f"{type(error).__name__}: {error}: this is a bug; REWRITER_TRACEBACK=1 shows where", BAD)


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _complain(message: str, status: int) -> int:
    if _debugging() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"rewriter: {' '.join(message.split())}", file=sys.stderr)
    return status


def _debugging() -> bool:
    return os.environ.get("REWRITER_TRACEBACK", "") not in ("", "0")


def _reader_left() -> int:
    """Standard output was closed, as by ``| head``: end quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


@contextmanager
def _ending_well() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that nothing half-written and no child process stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, _: Any) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
