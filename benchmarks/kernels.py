"""Single products and convolutions against oneDNN and MKL through PyTorch: a process each, turn about.

    python -m benchmarks.kernels [products] [convolutions] [traffic]

A convolution is timed as it runs inside a network: its input lies where the kernel before would have put it (channels last, with the
zeros around it), and its weights are packed. PyTorch gets the better of its two layouts. The peak is that of multiplications and
additions in registers, measured here in the same way. ``traffic``: kernels that memory limits, by the bytes that they read and write a
second, as a fraction of what a copy (NumPy's, on as many threads; of a product with one row: reading alone) of as many bytes reaches.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np

from benchmarks.table import show

THREADS = 2
ROUNDS = 5
TURN = 0.06  # seconds
PRODUCTS = [  # rows, depth, columns
    (m, k, n)
    for m, sizes in (
        (1, ((64, 512), (576, 1536), (768, 3072), (1024, 4096), (4096, 4096))),
        (2, ((1024, 1024),)), (4, ((768, 768), (2048, 2048))), (7, ((384, 1536), (1536, 384))),
        (16, ((384, 384), (1024, 4096))), (32, ((384, 1536), (768, 768), (1024, 1024))), (49, ((512, 2048), (768, 192))),
        (64, ((64, 64), (256, 1024), (1024, 256))), (100, ((300, 700),)),
        (128, ((384, 384), (384, 1536), (1536, 384), (768, 3072), (3072, 768))), (197, ((192, 576), (192, 768), (768, 192))),
        (256, ((256, 256), (1024, 1024))), (512, ((512, 512), (768, 768), (2048, 512))), (784, ((128, 512), (512, 128))),
        (1024, ((64, 64), (512, 2048), (1024, 1024), (4096, 1024))),
    )
    for k, n in sizes
]  # fmt: skip
CONVOLUTIONS = [  # network, channels in, out, size, taps, stride, groups
    ("ResNet-50", 3, 64, 224, 7, 2, 1), ("ResNet-50", 64, 64, 56, 1, 1, 1), ("ResNet-50", 64, 64, 56, 3, 1, 1),
    ("ResNet-50", 64, 256, 56, 1, 1, 1), ("ResNet-50", 256, 64, 56, 1, 1, 1), ("ResNet-50", 256, 128, 56, 1, 1, 1),
    ("ResNet-50", 128, 128, 56, 3, 2, 1), ("ResNet-50", 128, 512, 28, 1, 1, 1), ("ResNet-50", 256, 512, 56, 1, 2, 1),
    ("ResNet-50", 512, 128, 28, 1, 1, 1), ("ResNet-50", 128, 128, 28, 3, 1, 1), ("ResNet-50", 256, 256, 14, 3, 1, 1),
    ("ResNet-50", 256, 1024, 14, 1, 1, 1), ("ResNet-50", 1024, 256, 14, 1, 1, 1), ("ResNet-50", 512, 512, 7, 3, 1, 1),
    ("ResNet-50", 2048, 512, 7, 1, 1, 1), ("MobileNetV3", 3, 16, 224, 3, 2, 1), ("MobileNetV3", 16, 16, 112, 3, 2, 16),
    ("MobileNetV3", 16, 72, 56, 1, 1, 1), ("MobileNetV3", 72, 72, 56, 3, 2, 72), ("MobileNetV3", 72, 24, 28, 1, 1, 1),
    ("MobileNetV3", 88, 88, 28, 3, 1, 88), ("MobileNetV3", 96, 96, 28, 5, 2, 96), ("MobileNetV3", 40, 240, 14, 1, 1, 1),
    ("MobileNetV3", 240, 240, 14, 5, 1, 240), ("MobileNetV3", 576, 96, 7, 1, 1, 1), ("EfficientNet", 3, 32, 224, 3, 2, 1),
    ("EfficientNet", 32, 32, 112, 3, 1, 32), ("EfficientNet", 16, 96, 112, 1, 1, 1), ("EfficientNet", 96, 96, 112, 3, 2, 96),
    ("EfficientNet", 24, 144, 56, 1, 1, 1), ("EfficientNet", 144, 144, 56, 3, 1, 144), ("EfficientNet", 144, 144, 56, 5, 2, 144),
    ("EfficientNet", 80, 480, 14, 1, 1, 1), ("EfficientNet", 672, 672, 14, 5, 1, 672), ("EfficientNet", 1152, 192, 7, 1, 1, 1),
    ("RepVGG", 48, 48, 56, 3, 1, 1), ("RepVGG", 48, 96, 56, 3, 2, 1), ("RepVGG", 96, 96, 28, 3, 1, 1),
    ("RepVGG", 192, 192, 14, 3, 1, 1),
]  # fmt: skip
TRAFFIC = [  # operator, rows, columns: within the caches, and beyond them
    (op, rows, 1024) for rows in (256, 2048, 32768) for op in ("Relu", "Gelu", "LayerNormalization", "Softmax")
] + [("MatMul", k, n) for k, n in ((768, 768), (2048, 2048), (4096, 4096), (4096, 16384))]
_OPERATORS = ("Relu", "Gelu", "LayerNormalization", "Softmax", "MatMul")
_MOVING = ("pad", "halo", "copy", "Concat")  # what the kernels before and after would have done


# --- in the process of an engine


def _serve(engine: str) -> None:
    """Answer each line of standard input, a shape, with the milliseconds of one turn; the first time it is prepared."""
    os.environ["TVM_NUM_THREADS"] = str(THREADS)
    make = {"ours": _ours, "torch": _torch, "machine": _machine}[engine]
    known: dict[str, list[Callable[[], Any]]] = {}
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        if line not in known:
            known.clear()
            known[line] = make(json.loads(line))
        replies.write(json.dumps(min(([_turn(run) for run in known[line]]), key=sum)) + "\n")
        replies.flush()


def _turn(run: Callable[[], Any]) -> list[float]:
    run()
    taken: list[float] = []
    end = time.perf_counter() + TURN
    while time.perf_counter() < end or not taken:
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) * 1e3)
    return [min(taken), statistics.median(taken)]


def _torch(shape: Sequence[Any]) -> list[Callable[[], Any]]:
    import torch

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    if isinstance(shape[0], str) and shape[0] in _OPERATORS:
        op, rows, columns = shape
        if op == "MatMul":
            whole, one = torch.nn.Linear(rows, columns, bias=False), torch.randn(1, rows)
            return [lambda: whole(one)]
        x = torch.randn(rows, columns)
        norm = torch.nn.LayerNorm(columns)
        return [{"Relu": lambda: x.relu(), "Gelu": lambda: torch.nn.functional.gelu(x), "LayerNormalization": lambda: norm(x),
                 "Softmax": lambda: x.softmax(-1)}[op]]  # fmt: skip
    if len(shape) == 3:
        m, k, n = shape
        layer, x = torch.nn.Linear(k, n, bias=False), torch.randn(m, k)
        return [lambda: layer(x)]
    _, c, o, size, taps, stride, groups = shape
    conv = torch.nn.Conv2d(c, o, taps, stride, taps // 2, groups=groups, bias=False)
    image = torch.randn(1, c, size, size)
    last: Any = torch.nn.Conv2d(c, o, taps, stride, taps // 2, groups=groups, bias=False)
    last = last.to(memory_format=torch.channels_last)
    turned = image.to(memory_format=torch.channels_last)
    return [lambda: conv(image), lambda: last(turned)]


def _ours(shape: Sequence[Any]) -> list[Callable[[], Any]]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from backends.tvm.database import Database
    from backends.tvm.graph import read
    from backends.tvm.lower import lower
    from backends.tvm.machine import detect
    from backends.tvm.tune import choose, runs

    if shape[0] in _OPERATORS:
        op, rows, columns = shape
        x, w = ([1, rows], [rows, columns]) if op == "MatMul" else ([rows, columns], [columns])
        node = helper.make_node(op, ["x", "w"] if op in ("MatMul", "LayerNormalization") else ["x"], ["y"])
    elif len(shape) == 3:
        m, k, n = shape
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        x, w = [m, k], [k, n]
    else:
        _, c, o, size, taps, stride, groups = shape
        pad, x, w = [taps // 2] * 4, [1, c, size, size], [o, c // groups, taps, taps]
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=pad, strides=[stride] * 2, group=groups)
    weights = np.random.default_rng(0).random(w, np.float32)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", x), ("y", None))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weights, "w")])
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    low = lower(read(model), detect(THREADS))
    chosen = choose(low, Database(), tune=8)
    steps = runs([launch for launch in low.launches if launch.label not in _MOVING and "copy" not in launch.label], chosen, low)
    return [lambda: [step() for step in steps]]


def _machine(shape: Sequence[Any]) -> list[Callable[[], Any]]:
    """A copy of so many bytes ("copy", read and written together), or reading them ("read"), on all threads."""
    from concurrent.futures import ThreadPoolExecutor

    kind, size = shape
    pool = ThreadPoolExecutor(THREADS)
    each = size // 4 // THREADS // (2 if kind == "copy" else 1)
    parts = [(np.ones(each, np.float32), np.ones(each, np.float32)) for _ in range(THREADS)]
    work = (lambda pair: np.copyto(pair[1], pair[0])) if kind == "copy" else (lambda pair: np.dot(pair[0], pair[0]))
    return [lambda: list(pool.map(work, parts))]


# --- in the parent


class _Engine:
    def __init__(self, name: str) -> None:
        command = [sys.executable, "-m", "benchmarks.kernels", "--serve", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self, shape: Sequence[Any]) -> list[float]:
        """[least, median] milliseconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(shape) + "\n")
        self._process.stdin.flush()
        found: list[float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _operations(shape: Sequence[Any]) -> float:
    if len(shape) == 3:
        return 2.0 * math.prod(shape)
    _, c, o, size, taps, stride, groups = shape
    return 2.0 * c // groups * o * taps * taps * math.ceil(size / stride) ** 2


def _table(title: str, shapes: Sequence[Sequence[Any]]) -> None:
    engines = {name: _Engine(name) for name in ("ours", "torch")}
    rows, ratios = [], []
    for shape in shapes:
        for engine in engines.values():
            engine.turn(shape)  # prepares
        times: dict[str, list[list[float]]] = {name: [] for name in engines}
        for number in range(ROUNDS):
            for name in sorted(engines, reverse=bool(number % 2)):
                times[name].append(engines[name].turn(shape))
        least = {name: min(t[0] for t in found) for name, found in times.items()}
        medians = {name: statistics.median(t[1] for t in found) for name, found in times.items()}
        ratios.append(medians["torch"] / medians["ours"])
        speed = _operations(shape) / 1e6
        rows.append([
            " ".join(map(str, shape)), f"{medians['ours']:.4f}", f"{medians['torch']:.4f}", f"{speed / least['ours']:.0f}",
            f"{speed / least['torch']:.0f}", f"{ratios[-1]:.2f}", f"{least['torch'] / least['ours']:.2f}",
        ])  # fmt: skip
    for engine in engines.values():
        engine.close()
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    below = sum(ratio < 0.95 for ratio in ratios)
    head = ["shape", "ours ms", "torch ms", "ours GFLOP/s", "torch GFLOP/s", "ratio", "ratio of minima"]
    show(f"{title}: geometric mean {mean:.2f}, least {min(ratios):.2f}, {below} of {len(ratios)} below 0.95", head, rows)


def _traffic_table() -> None:
    """Bytes a second."""
    engines = {name: _Engine(name) for name in ("ours", "torch", "machine")}
    rows = []
    for shape in TRAFFIC:
        op, high, wide = shape
        size = 4 * (high + high * wide + wide if op == "MatMul" else 2 * high * wide)
        asked = {"ours": shape, "torch": shape, "machine": ("read" if op == "MatMul" else "copy", size)}
        for name, engine in engines.items():
            engine.turn(asked[name])
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(ROUNDS):
            for name in sorted(engines, reverse=bool(number % 2)):
                times[name].append(engines[name].turn(asked[name])[0])
        speed = {name: size / min(found) / 1e6 for name, found in times.items()}
        fraction = speed["ours"] / speed["machine"]
        cells = [f"{op} {high} {wide}", f"{size / 2**20:.1f}", *(f"{speed[name]:.1f}" for name in engines), f"{fraction:.2f}"]
        rows.append([*cells, f"{speed['ours'] / speed['torch']:.2f}"])
    for engine in engines.values():
        engine.close()
    head = ["operator, rows, columns", "MB", "ours GB/s", "torch GB/s", "copy or read GB/s", "of it", "ratio to torch"]
    show("Kernels that memory limits; least times", head, rows)


@click.command()
@click.argument("tables", nargs=-1, type=click.Choice(["products", "convolutions", "traffic"]))
@click.option("--serve", hidden=True)
def main(tables: tuple[str, ...], serve: str | None) -> None:
    """Products and convolutions one by one, against PyTorch; 2 threads."""
    if serve:
        _serve(serve)
        return
    if not tables or "products" in tables:
        _table("matrix products: rows, depth, columns", PRODUCTS)
    if not tables or "convolutions" in tables:
        _table("convolutions: network, channels in, out, size, taps, stride, groups", CONVOLUTIONS)
    if not tables or "traffic" in tables:
        _traffic_table()


if __name__ == "__main__":
    main()
