"""JapaneseVowels: real speech features of nine speakers, small enough to ship inside a Python package.

Source: Kudo, Toyama, Shimbo (1999), "Multidimensional Curve Classification Using Passing-Through Regions".
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from lilliput.core.errors import DataError, MissingExtraError
from lilliput.data.dataset import RawData, Split
from lilliput.data.roles import last_of_each_class
from lilliput.data.roots import Layout, search
from lilliput.data.ts import read_ts

TRAIN, TEST = "JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts"
JAPANESE_VOWELS = Layout(folders=("JapaneseVowels",), files=((TRAIN,), (TEST,)))
CHANNELS, FRAMES, SPEAKERS = 12, 29, 9
_HELD_OUT = 6  # of the 30 utterances of each speaker


def find_japanese_vowels(data_root: str | Path | None = None) -> Path:
    """The folder of the two files: below a data root, or inside the installed package `aeon`, which is not imported."""
    found = search((JAPANESE_VOWELS,), data_root)
    if found is not None:
        return found[1]
    spec = importlib.util.find_spec("aeon")
    for package in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(package) / "datasets" / "data" / "JapaneseVowels"
        if JAPANESE_VOWELS.fits(folder):
            return folder
    state = "not installed" if spec is None else "installed without them"
    raise MissingExtraError(
        "data set 'japanese-vowels'",
        f"the package 'aeon', which ships its files, is {state}",
        f"`pip install --no-deps aeon` (it is not imported), or put {TRAIN} and {TEST} into JapaneseVowels/ "
        "below a data root (--data-root)",
    )


def read_japanese_vowels(folder: Path) -> RawData:
    """float32 series [n, 12, 29]: 12 cepstrum coefficients over up to 29 frames, zeros after the end.

    The class is the speaker: 270 utterances for training (30 of each; the last 6 of each for validation), 370 for test.
    """
    train, test = _read(folder / TRAIN), _read(folder / TEST)
    return RawData(
        name="japanese-vowels",
        train=train,
        test=test,
        labels=tuple(f"speaker {i}" for i in range(1, SPEAKERS + 1)),
        validation_rows=last_of_each_class(train[1], _HELD_OUT),
        source=str(folder),
    )


def _read(path: Path) -> Split:
    file = read_ts(path)
    expected = tuple(str(i) for i in range(1, SPEAKERS + 1))
    longest = max(series.shape[1] for series in file.series)
    if file.classes != expected or file.series[0].shape[0] != CHANNELS or longest > FRAMES:
        found = f"{len(file.classes)} classes, {file.series[0].shape[0]} channels, up to {longest} frames"
        expected_text = f"expected {SPEAKERS}, {CHANNELS} and {FRAMES}"
        raise DataError(f"read JapaneseVowels file {path}", f"{found}; {expected_text}", "get the file again")
    padded = np.zeros((len(file.series), CHANNELS, FRAMES), dtype=np.float32)
    for row, series in zip(padded, file.series, strict=True):
        row[:, : series.shape[1]] = series
    labels = torch.tensor([expected.index(label) for label in file.labels], dtype=torch.int64)
    return torch.from_numpy(padded), labels
