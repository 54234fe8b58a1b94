"""A job script for a cluster: an array with a task for each run of an experiment."""

import re
import shlex
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from lilliput.bench.generation.experiment import load
from lilliput.core.errors import MissingExtraError, UsageError
from lilliput.core.files import write_atomically

System = Literal["pbs", "slurm"]
LONGEST_NAME = 15
"""Of a job, in PBS."""
FORMS = {
    "walltime": (r"(\d+-)?\d+:\d\d(:\d\d)?", "write 24:00:00"),
    "memory": (r"\d+(kb|mb|gb|tb|[KMGT])", "write 4gb for PBS, 4G for Slurm"),
    "email": (r"[\w.+%-]+@[\w.-]+", "write name@example.org"),
    "queue": (r"[\w.@-]+", "write its name"),
    "name": (r"[A-Za-z][\w.-]*", "write letters, digits, _, . and -"),
}
USUAL_MEMORY = {"pbs": "4gb", "slurm": "4G"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """`folder`: where the runs go; `at_once`: so many tasks at most.

    On the cluster `python` runs Lilliput, in `directory`, from which paths are counted.
    """

    experiment: Path
    system: System
    folder: Path
    directory: Path
    walltime: str = "24:00:00"
    memory: str | None = None
    cores: int = 1
    email: str | None = None
    queue: str | None = None
    name: str | None = None
    at_once: int | None = None
    data_root: Path | None = None
    python: str = sys.executable

    def __post_init__(self) -> None:
        if self.system not in USUAL_MEMORY:
            raise UsageError(f"--system {self.system}", "not known", f"use {' or '.join(USUAL_MEMORY)}")
        for name, (form, do) in FORMS.items():
            value = getattr(self, name)
            if value is not None and re.fullmatch(form, value, re.ASCII) is None:
                raise UsageError(f"--{name} {value}", f"it is no {name} for a job", do)
        for name in ("experiment", "folder", "directory", "data_root", "python"):
            if any(ord(c) < 32 for c in str(getattr(self, name))):
                raise UsageError(f"{name} of a job", "a line end or a control character in it", "rename it")

    def script(self, template: Path | None = None) -> str:
        """The text of the script, from the template of the system or from a file of your own.

        Templates know `name`, `runs`, `cores`, `memory`, `walltime`, `queue`, `email`, `at_once`, and, quoted for the
        shell, `directory` and `command`: the command without its `--only NUMBER`.
        """
        runs = len(load(self.experiment).grid())
        command = [self.python, "-m", "lilliput", "cgp", "train", self.experiment, "-o", self.folder]
        command += ["--jobs", self.cores] if self.cores > 1 else []
        command += ["--data-root", self.data_root] if self.data_root is not None else []
        values = {
            "name": self.name or _name(self.experiment),
            "runs": runs,
            "cores": self.cores,
            "memory": self.memory or USUAL_MEMORY[self.system],
            "walltime": self.walltime,
            "queue": self.queue,
            "email": self.email,
            "at_once": self.at_once,
            "directory": shlex.quote(str(self.directory)),
            "command": shlex.join(str(word) for word in command),
        }
        return _rendered(_template(self.system, template), values, template)


def write(job: Job, path: Path, template: Path | None = None) -> str:
    """Write the script; how to hand it in."""
    write_atomically(path, job.script(template).encode())
    return f"{'qsub' if job.system == 'pbs' else 'sbatch'} {shlex.quote(str(path))}"


def _template(system: System, path: Path | None) -> str:
    if path is None:
        return (files("lilliput.bench.generation") / "templates" / f"{system}.sh").read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        do = f"check the path ({type(error).__name__})"
        raise UsageError(f"template {path}", "it cannot be read", do) from error


def _rendered(text: str, values: dict[str, object], path: Path | None) -> str:
    try:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import SandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("a job script", "jinja2 is not installed", "pip install jinja2") from error
    environment = SandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a script, no page: paths are quoted for the shell
    )
    try:
        return environment.from_string(text).render(values)
    except (TemplateError, TypeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        do = f"use {', '.join(values)}"
        raise UsageError(
            f"template {path or 'of the package'}{where}", str(error) or type(error).__name__, do
        ) from error


def _name(experiment: Path) -> str:
    """Letters first, as PBS wants it."""
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", experiment.stem).strip("-")
    return (words if words[:1].isalpha() else f"cgp-{words}")[:LONGEST_NAME].rstrip("-")
