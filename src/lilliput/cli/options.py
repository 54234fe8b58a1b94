"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.core.errors import UsageError


def known_device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(
            f"--device {name}", str(error).splitlines()[0][:160], "use cpu, or cuda where torch has it"
        ) from error
    return name


Model = Annotated[str, typer.Argument(help="a name of the zoo (lilliput zoo), or file.py:make")]
Weights = Annotated[Path | None, typer.Option(help=".pt (state dict), .safetensors or .lil to load into the model")]
DataName = Annotated[
    str | None, typer.Option(help="another data set for a network of the zoo: digits, mnist, fashion-mnist, cifar10")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="folder with data sets (else LILLIPUT_DATA and ~/.cache/lilliput/data)")
]
Download = Annotated[bool, typer.Option(help="fetch a missing data set")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Seed = Annotated[int, typer.Option(min=0)]
Device = Annotated[str, typer.Option(help="where torch computes", callback=known_device)]
TargetName = Annotated[str | None, typer.Option(help="onnx-x86 (default), onnx-arm, c-host or cortex-m4")]
Into = Annotated[
    str | None,
    typer.Option(help="the model that a .lil file was made from, if it holds no graph: a zoo name or file.py:make"),
]
RoleName = Annotated[str, typer.Option(help="train, validation or test")]
