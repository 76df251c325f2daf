"""Models in 8 bits: quantised by ONNX Runtime's static quantiser as most deployments are, calibrated on inputs like the example."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from zoo.onnx_models import Feed

Inputs = Callable[[Feed], Iterable[Feed]]


PRODUCTS = ("Conv", "MatMul", "Gemm")


def quantised(write: Callable[[Path], Feed], inputs: Inputs, operators: Sequence[str] | None = PRODUCTS) -> Callable[[Path], Feed]:
    """What ``write`` makes, with QuantizeLinear and DequantizeLinear around its products and convolutions: 8-bit activations with zero
    points, and weights with a scale for each channel. ``inputs(feed)``: what to calibrate on, of the example's shapes. ``operators``: other
    operators to quantise; None: all that the quantiser knows.
    """

    def quantise(stem: Path) -> Feed:
        from onnxruntime.quantization import (  # type: ignore[import-untyped, unused-ignore]
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )  # fmt: skip
        from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped, unused-ignore]

        class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
            def __init__(self, feeds: Iterator[Feed]) -> None:
                self._feeds = feeds

            def get_next(self) -> Feed | None:
                return next(self._feeds, None)

        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            plain = Path(folder, stem.name)
            feed = write(plain)
            prepared = str(plain.with_suffix(".prepared.onnx"))
            quant_pre_process(str(plain.with_suffix(".onnx")), prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, str(stem.with_suffix(".onnx")), Reader(iter(inputs(feed))), quant_format=QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=None if operators is None else list(operators), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        return feed

    return quantise


def in_blocks(write: Callable[[Path], Feed], bits: int, block: int) -> Callable[[Path], Feed]:
    """What ``write`` makes, the weights of its products rounded to ``bits`` with a scale for each ``block`` of depth; activations stay floats."""

    def store(stem: Path) -> Feed:
        from passes.approximate.blockwise_weights import InBlocks, coded
        from passes.approximate.candidate import Later
        from passes.approximate.products import products
        from passes.approximate.substitution import Substitution
        from passes.drop_dead import drop_dead
        from rewriter.read_onnx import read_onnx
        from rewriter.write_onnx import write_onnx

        with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
            plain = Path(folder, stem.name)
            feed = write(plain)
            model = read_onnx(plain.with_suffix(".onnx"))
            graph = Substitution(model)
            for product in list(products(model)):
                if not product.is_convolution and product.weights.shape[1] % block == 0:
                    InBlocks(product, Later(partial(coded, product.weights, None, bits, block)), bits, block)(graph)
            drop_dead(model)
            write_onnx(model, stem.with_suffix(".onnx"))
        return feed

    return store


def noisy(feed: Feed) -> Iterator[Feed]:
    """Floats as they are, and with noise of a tenth of their spread; integers as they are."""
    random = np.random.default_rng(0)
    for scale in (0.0, *[0.1] * 7):
        yield {name: _with_noise(array, scale, random) for name, array in feed.items()}


def crops(feed: Feed) -> Iterator[Feed]:
    """Lines of the picture of a page of text, as PP-OCR's recogniser reads them: [1, 3, 48, 320]."""
    from zoo.recordings import as_input, picture, resized

    (name,) = feed
    page = picture()
    for top in range(0, min(160, len(page) - 30), 20):
        yield {name: as_input(resized(page[top : top + 30], 48, 320))}


def _with_noise(array: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    noise: np.ndarray = random.normal(size=array.shape, scale=scale * float(array.std()) or 1e-9)
    return array + noise.astype(array.dtype)
