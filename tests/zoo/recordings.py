"""Real inputs: speech, pictures, text."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from zoo.packages import package

Array = np.ndarray[Any, Any]

SENTENCES = (
    "A man is playing a guitar on the street.",
    "The weather is lovely today, is it not?",
    "Tokyo's stock market fell by three percent after the central bank raised its interest rate for the second time this year.",
    "Why?",
    "Two dogs run across a wet meadow while a child in a yellow raincoat watches from behind the fence.",
    "The committee rejected the proposal.",
    "In 1911, Ernest Rutherford found that the charge of an atom is concentrated in a very small nucleus at its centre.",
    "Please send the parcel to 12 Station Road, not to the office!",
)


def speech(language: str = "en") -> Array:
    """A spoken sentence: float32 ``[samples]`` at 16 kHz, in -1..1."""
    folder = package("pytest_audioeval") / "samples" / "audio" / language
    return sound_of(sorted(folder.glob("*.wav"))[0])


def sound_of(file: Path) -> Array:
    """A recording: float32 ``[samples]`` at 16 kHz, in -1..1."""
    rate, samples = _wav(file)
    places = np.arange(0, len(samples) - 1, rate / 16000)
    return np.interp(places, np.arange(len(samples)), samples).astype("float32")


def _wav(path: Path) -> tuple[int, Array]:
    """Samples a second, and the first channel. The standard library's reader refuses float samples."""
    data = path.read_bytes()
    at, rate, channels, kind, bits = 12, 0, 1, 1, 16
    while at < len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, at + 8)
        elif name == b"data":
            dtype = {(1, 16): "<i2", (3, 32): "<f4"}[kind, bits]
            samples = np.frombuffer(data[at + 8 : at + 8 + size], dtype).reshape(-1, channels)[:, 0]
            return rate, samples.astype("float64") / (32768 if kind == 1 else 1)
        at += 8 + size + size % 2
    raise ValueError(f"{path.name} has no samples")


def picture(name: str = "page.png") -> Array:
    """A picture of scikit-image: uint8 ``[height, width, 3]``."""
    from PIL import Image

    return np.asarray(Image.open(package("skimage") / "data" / name).convert("RGB"))


def resized(image: Array, height: int, width: int) -> Array:
    """The same picture at another size."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def as_input(image: Array, mean: float = 0.5, deviation: float = 0.5) -> Array:
    """uint8 ``[h, w, 3]`` -> float32 ``[1, 3, h, w]``, as image networks take it."""
    scaled = (image.astype("float32") / 255 - mean) / deviation
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None].astype("float32"))
