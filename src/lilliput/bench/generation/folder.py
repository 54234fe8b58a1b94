"""The folder of an experiment: `experiment.yaml`, a folder for each run in `runs`, and what the store keeps of them."""

from dataclasses import asdict
from pathlib import Path

from lilliput.bench.generation.experiment import Experiment, load
from lilliput.bench.generation.one import ABOUT, EXPERIMENT
from lilliput.core.errors import ArtifactError, RecipeError, UsageError
from lilliput.core.files import explained, is_temporary, write_atomically

RUNS, WHAT = "runs", "experiment folder"


def begin(experiment: Experiment, path: Path) -> None:
    """Make it that of this experiment, or see that it is."""
    asked = f"{WHAT} {path}"
    with explained(asked):
        there = sorted(p.name for p in path.iterdir() if not is_temporary(p.name)) if path.exists() else []
    if EXPERIMENT in there:
        old, new = asdict(_kept(path)), asdict(experiment)
        changed = [f"{key}: {old[key]!r:.60}, now {new[key]!r:.60}" for key in new if new[key] != old[key]]
        if changed:
            only = len(changed) == 1 and changed[0].startswith("generations")
            do = f"lilliput cgp continue {path} --generations {new['generations']}" if only else "choose another folder"
            raise UsageError(asked, f"its experiment is another ({'; '.join(changed)})", do)
    elif there:
        found = f"it has no {EXPERIMENT}, but other files ({', '.join(there[:3])})"
        raise UsageError(asked, found, "choose an empty folder")
    else:
        write_atomically(path / EXPERIMENT, experiment.to_yaml().encode())


def opened(path: Path) -> tuple[Experiment, Path, int | None]:
    """Experiment, its folder, and the number of the run where `path` is the folder of one run."""
    if (path / ABOUT).is_file() and path.parent.name == RUNS:
        number = path.name.partition("-")[0]
        if number.isdigit():
            return _kept(path.parent.parent), path.parent.parent, int(number)
    if path.is_file():
        raise UsageError(f"{WHAT} {path}", "it is a file", "give the folder that lilliput cgp train has made")
    if not (path / EXPERIMENT).is_file():
        found = "no such folder" if not path.exists() else "there is no experiment in it"
        raise UsageError(f"{WHAT} {path}", found, f"begin one: lilliput cgp train EXPERIMENT.yaml -o {path}")
    return _kept(path), path, None


def _kept(path: Path) -> Experiment:
    try:
        return load(path / EXPERIMENT)
    except RecipeError as error:
        found = f"its {EXPERIMENT} is damaged ({error.asked}: {error.found})"
        raise ArtifactError(f"{WHAT} {path}", found, "put back what lilliput cgp train wrote") from error
