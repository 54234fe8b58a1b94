"""Names for networks with their data, and weights where the package brings some."""

import difflib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lilliput.core import container
from lilliput.core.errors import UsageError
from lilliput.core.progress import SILENT, Progress
from lilliput.core.task import Task
from lilliput.data.arrays import Features
from lilliput.nn.models.digits import DigitsCNN, SpeechCNN, TinyAutoencoder, TinyRegressor, TinySegmenter
from lilliput.nn.models.lenet import MNISTCNN, LeNet5, LeNet5ELU, LeNet5Seed, LeNet5Tanh, SeedCNN, SmallMNISTCNN
from lilliput.nn.models.mlperf_tiny import DSCNN, DenseAutoencoder, MobileNetV1, TinyResNet8
from lilliput.nn.models.plain import VGG, MojoCIFARCNN
from lilliput.nn.models.resmlp import ResMLP
from lilliput.nn.models.resnet import CifarResNet
from lilliput.training.settings import FitSettings
from lilliput.zoo import tasks

CIFAR = tasks.image_classification("cifar10", mean=tasks.CIFAR_MEAN, std=tasks.CIFAR_STD, augment=tasks.flip_and_crop)
CIFAR_PIXELS = tasks.image_classification("cifar10", augment=tasks.flip_and_crop)
SVHN, SVHN_EXTRA = (
    tasks.image_classification(name, mean=tasks.SVHN_MEAN, std=tasks.SVHN_STD, augment=tasks.crop)
    for name in ("svhn", "svhn-extra")
)
KEYWORDS = tasks.own_features(
    Features(name="speech-commands", shape=(1, 49, 10), n_labels=len(tasks.KEYWORDS)), labels=tasks.KEYWORDS
)
SOUNDS = tasks.own_features(Features(name="toyadmos", shape=(640,), n_labels=2, anomaly=True))
PERSONS = tasks.own_features(
    Features(name="visual-wake-words", shape=(3, 96, 96), n_labels=2),
    labels=("no person", "person"),
    augment=tasks.flip_and_crop,
)
DIGITS = tasks.image_classification("digits", highest=16.0, augment=tasks.small_shifts)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`weights`: the file that comes with the package; without one, train first or give --weights."""

    model: Callable[[], nn.Module]
    task: Callable[..., Task]
    shape: tuple[int, ...]  # of one input
    data: str
    summary: str
    training: FitSettings
    weights: str = ""


_SMALL = FitSettings(epochs=40, batch_size=64, optimizer="adamw", learning_rate=1e-2, schedule="one_cycle", keep="last")
_MNIST = FitSettings(
    epochs=12, batch_size=128, optimizer="adamw", learning_rate=2e-3, schedule="one_cycle", keep="last"
)
_CIFAR = FitSettings(
    epochs=120,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="one_cycle",
    keep="last",
)
_SVHN = replace(_CIFAR, epochs=40)  # as many steps as 60 epochs of CIFAR-10
_TINY = FitSettings(epochs=36, batch_size=100, optimizer="adamw", learning_rate=2e-3, schedule="one_cycle", keep="last")
_MOJO = replace(_CIFAR, epochs=60, optimizer="adamw", learning_rate=1e-3)  # no BatchNorm: 0.1 is too much
_RESMLP = replace(_CIFAR, epochs=60, optimizer="adamw", learning_rate=2e-3, weight_decay=0.0)


def _mnist(data: str) -> Callable[..., Task]:
    return tasks.image_classification(data)


def _thousands(count: int) -> str:
    return f"{count / 1000:.3g}k"


ZOO: dict[str, Entry] = {
    "digits-cnn": Entry(
        shape=(1, 8, 8),
        model=DigitsCNN,
        task=DIGITS,
        data="digits",
        training=_SMALL,
        weights="digits-cnn.lil",
        summary="8x8 digits, residual CNN (17.6k parameters)",
    ),
    "digits-resmlp": Entry(
        shape=(1, 8, 8),
        model=lambda: ResMLP(hidden=32, channels=16, blocks=2, patch=2, pixels=8, colors=1),
        task=DIGITS,
        data="digits",
        training=_SMALL,
        summary="8x8 digits, ResMLP of two blocks (3.16k parameters)",
    ),
    "digits-anomaly": Entry(
        shape=(1, 8, 8),
        model=TinyAutoencoder,
        task=tasks.one_class_digits,
        data="digits",
        training=_SMALL,
        summary=f"one-class digits: autoencoder trained on {tasks.NORMAL_DIGIT}s (4.7k)",
    ),
    "digits-masks": Entry(
        shape=(1, 8, 8),
        model=TinySegmenter,
        task=tasks.digit_masks,
        data="digits",
        training=_SMALL,
        summary="ink masks of noisy digits (3.0k)",
    ),
    "diabetes": Entry(
        shape=(10,),
        model=TinyRegressor,
        task=tasks.diabetes,
        data="scikit-learn",
        training=_SMALL,
        summary="regression on ten measurements (0.9k)",
    ),
    "japanese-vowels": Entry(
        shape=(12, 29),
        model=SpeechCNN,
        task=tasks.speech,
        data="aeon's JapaneseVowels",
        training=_SMALL,
        summary="speaker from cepstrum frames, 1-D CNN (7.8k)",
    ),
    "small-mnist": Entry(
        shape=(1, 28, 28),
        model=SmallMNISTCNN,
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="SIC's SmallMNISTCNN, two linear layers (102k)",
    ),
    "lenet5-tanh": Entry(
        shape=(1, 28, 28),
        model=LeNet5Tanh,
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="SIC's LeNet5Tanh, the Caffe LeNet-5 (431k)",
    ),
    "lenet5-elu": Entry(
        shape=(1, 28, 28),
        model=LeNet5ELU,
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="SIC's LeNet5ELU, the Caffe LeNet-5 (431k)",
    ),
    "lenet5-seed": Entry(
        shape=(1, 28, 28),
        model=lambda: LeNet5Seed(n_classes=10),
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="SIC's LeNet5Seed, the convolutions of LeNet5Tanh, and a linear layer (33.6k)",
    ),
    "seed-cnn": Entry(
        shape=(1, 28, 28),
        model=SeedCNN,
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="SIC's SeedCNN, two strided convolutions (19.5k)",
    ),
    "lenet5": Entry(
        shape=(1, 28, 28),
        model=LeNet5,
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="classic LeNet-5 (61.7k)",
    ),
    "mnist-cnn": Entry(
        shape=(1, 28, 28),
        model=MNISTCNN,
        task=_mnist("mnist"),
        data="mnist",
        training=_MNIST,
        summary="the MNIST network of self-compression's reference, four convolutions (87.7k)",
    ),
    **{
        f"resnet{depth}": Entry(
            model=lambda depth=depth: CifarResNet(depth=depth),
            shape=(3, 32, 32),
            task=CIFAR,
            data="cifar10",
            training=_CIFAR,
            summary=f"CIFAR ResNet-{depth}, option A shortcuts ({count})",
        )
        for depth, count in ((8, "75k"), (20, "270k"), (32, "464k"), (56, "853k"))
    },
    "resnet16": Entry(
        shape=(3, 32, 32),
        model=lambda: CifarResNet(depth=14, projections=True),
        task=CIFAR,
        data="cifar10",
        training=_CIFAR,
        summary="SIC's ResNet-16, two blocks a stage, option B shortcuts (175k)",
    ),
    "resnet16-svhn": Entry(
        shape=(3, 32, 32),
        model=lambda: CifarResNet(depth=14, projections=True),
        task=SVHN,
        data="svhn",
        training=_SVHN,
        summary="SIC's ResNet-16 for house numbers (175k)",
    ),
    **{
        f"resmlp-{hidden}{end}": Entry(
            model=lambda hidden=hidden, end=end: ResMLP(hidden=hidden, activation=end.removeprefix("-") or "relu"),
            shape=(3, 32, 32),
            task=CIFAR,
            data="cifar10",
            training=_RESMLP,
            summary=f"ResMLP, four blocks with {hidden} hidden channels{what} ({_thousands(count)})",
        )
        for hidden, count in ((384, 321_642), (192, 173_418), (96, 99_306), (48, 62_250), (24, 43_722))
        for end, what, count in (
            ("", "", count),
            ("-gelu", ", GELU", count),
            ("-spline", ", spline activations", count + 4 * 65 * (96 + hidden)),
            ("-psa", ", PSA activations", count + 4 * 26 * (96 + hidden)),
        )
    },
    "vgg": Entry(
        shape=(3, 32, 32),
        model=VGG,
        task=CIFAR_PIXELS,
        data="cifar10",
        training=_CIFAR,
        summary="VGG of eight convolutions with BatchNorm (9.23M)",
    ),
    "mojo-cifar": Entry(
        shape=(3, 32, 32),
        model=MojoCIFARCNN,
        task=CIFAR_PIXELS,
        data="cifar10",
        training=_MOJO,
        summary="SIC's MojoCIFARCNN, five convolutions without pooling (404k)",
    ),
    "ds-cnn": Entry(
        shape=(1, 49, 10),
        model=DSCNN,
        task=KEYWORDS,
        data="your features, speech-commands/*.npy",
        training=_TINY,
        summary="MLPerf Tiny's keyword spotting, depthwise separable CNN (23.8k)",
    ),
    "mobilenet-025": Entry(
        shape=(3, 96, 96),
        model=MobileNetV1,
        task=PERSONS,
        data="your images, visual-wake-words/*.npy",
        training=_TINY,
        summary="MLPerf Tiny's person detection, MobileNetV1 with a quarter of the channels (216k)",
    ),
    "resnet8-mlperf": Entry(
        shape=(3, 32, 32),
        model=TinyResNet8,
        task=CIFAR,
        data="cifar10",
        training=_CIFAR,
        summary="MLPerf Tiny's ResNet-8, with biases and plain projections (78.2k)",
    ),
    "autoencoder-ad": Entry(
        shape=(640,),
        model=DenseAutoencoder,
        task=SOUNDS,
        data="your features, toyadmos/*.npy",
        training=replace(_TINY, epochs=100, batch_size=512),
        summary="MLPerf Tiny's machine sounds, autoencoder 640-128-8-128-640 (268k)",
    ),
}

DATA = {
    "digits": DIGITS,
    "mnist": _mnist("mnist"),
    "fashion-mnist": _mnist("fashion-mnist"),
    "cifar10": CIFAR,
    "svhn": SVHN,
    "svhn-extra": SVHN_EXTRA,
}
"""Data sets that `--data` can put in the place of an entry's own."""


def entry(name: str) -> Entry:
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(ZOO)}."
        raise UsageError(f"network {name!r}", "it is not in the zoo", f"{hint} For your own: file.py:make")
    return ZOO[name]


def open_model(
    source: str,
    *,
    weights: str | Path | None = None,
    data: str | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    trained: bool = True,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> tuple[nn.Module, Task]:
    """The network and task of a zoo name, or of "file.py:make" / "package.module:make" (a function that returns both).

    `weights` are loaded into the network (see `load_weights`). With `trained`, a zoo network without weights of its own
    is an error that says how to get some; with `fresh`, the weights that come with the package are left out.
    """
    if ":" in source:
        if data is not None:
            do = "leave it out, or choose a network of the zoo"
            raise UsageError(f"data {data!r} for {source!r}", "that function gives the task, with its data", do)
        model, task = _own(source)
    else:
        found = entry(source)
        model, task = found.model(), _task(found, data)(data_root, download=download, progress=progress)
        if weights is None and found.weights and not fresh:
            shipped = resources.files("lilliput.zoo") / "weights" / found.weights
            model = container.loads(shipped.read_bytes(), source=found.weights).replay(model).module
        elif weights is None and trained:
            raise UsageError(
                f"network {source!r}",
                "the package has no weights for it",
                f"run: lilliput train {source}, then give --weights {source}.lil, or other weights",
            )
    if weights is not None:
        model = load_weights(model, weights)
    return model, task


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """From `.lil`, `.safetensors`, or a `.pt`/`.pth`/`.ckpt` state dict (read with weights_only=True).

    Prefixes "module." and "model." and Lightning's "state_dict" are taken off. Shapes must match exactly.
    """
    path = Path(path)
    asked = f"weights {path}"
    if not path.is_file():
        raise UsageError(asked, "no such file", "check the path")
    if path.suffix == ".lil":
        contents = container.read(path)
        if contents.edits or contents.activations:
            raise UsageError(
                asked, "it is a compressed network", "give float weights; evaluate, predict and export take such files"
            )
        return contents.replay(model).module
    state = _read_state(path, asked)
    own = model.state_dict()
    for prefix in ("module.", "model.", "net."):
        if not set(state) & set(own) and any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    missing = sorted(n for n in set(own) - set(state) if not n.endswith("num_batches_tracked"))
    extra = sorted(set(state) - set(own))
    wrong = [n for n in state if n in own and state[n].shape != own[n].shape]
    if missing or extra or wrong:
        found = (
            f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}, the model's is {tuple(own[wrong[0]].shape)}"
            if wrong
            else f"no {missing[0]!r} in it"
            if missing
            else f"{extra[0]!r} is not in the model"
        )
        raise UsageError(
            asked, found, f"give weights of a {type(model).__name__} ({len(missing)} missing, {len(extra)} extra)"
        )
    model.load_state_dict(state, strict=False)
    return model


def _read_state(path: Path, asked: str) -> dict[str, Tensor]:
    import pickle

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        line = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UsageError(
            asked, f"it cannot be read safely ({line})", "save a plain state dict: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise UsageError(asked, f"not a safetensors file ({error})", "give another file") from error
        raise
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(cast(dict[str, Any], loaded).get(key), dict):
            loaded = cast(dict[str, Any], loaded)[key]
    items = cast(dict[str, Any], loaded) if isinstance(loaded, dict) else {}
    if not items or not all(isinstance(v, Tensor) for v in items.values()):
        raise UsageError(asked, "it does not hold a state dict", "save one: torch.save(model.state_dict(), ...)")
    return cast(dict[str, Tensor], items)


def _task(found: Entry, data: str | None) -> Callable[..., Task]:
    if data is None:
        return found.task
    if data not in DATA:
        raise UsageError(f"--data {data}", "not a data set for networks of the zoo", f"use one of {', '.join(DATA)}")
    return DATA[data]


def _own(source: str) -> tuple[nn.Module, Task]:
    """Import the user's file and call its function; modules beside the file can be imported, as in a script."""
    place, _, name = source.rpartition(":")
    beside = [str(Path(place).resolve().parent)] if place.endswith(".py") else []
    sys.path[:0] = beside
    try:
        module = _import_file(Path(place)) if beside else _import_module(place, source)
        make = getattr(module, name, None)
        if not callable(make):
            raise UsageError(
                f"model {source!r}", f"{place} has no function {name!r}", "define it: it returns (model, task)"
            )
        made = cast(Any, make())
    except ImportError as error:
        raise UsageError(
            f"model {source!r}", f"it cannot be imported ({error})", "check the path and what the file imports"
        ) from error
    finally:
        for folder in beside:
            sys.path.remove(folder)
    if isinstance(made, tuple) and len(cast(tuple[Any, ...], made)) == 2:
        model, task = cast(tuple[Any, Any], made)
        if isinstance(model, nn.Module) and isinstance(task, Task):
            return model, task
    raise UsageError(
        f"model {source!r}",
        f"{name}() returned {type(made).__name__}",
        "return (model, task): an nn.Module and a lilliput.Task",
    )


def _import_module(name: str, source: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"model {source!r}", "not a model", "give a name of the zoo, file.py:make or package.module:make"
        )
    return importlib.import_module(name)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"model file {path}", "no such file", "check the path")
    known = sys.modules.get(path.stem)
    taken = known is not None and getattr(known, "__file__", None) != str(path)
    name = f"lilliput_user_{path.stem}" if taken else path.stem  # a file named json.py must not become everyone's json
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"model file {path}", "it is not a Python file", "give file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
