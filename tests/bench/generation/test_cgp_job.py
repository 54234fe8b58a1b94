"""Job scripts: bash reads them, and each task runs its own run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lilliput.bench.generation.job import Job, write
from lilliput.core.errors import UsageError

INDEX = {"pbs": "PBS_ARRAY_INDEX", "slurm": "SLURM_ARRAY_TASK_ID"}


@pytest.fixture
def job(write):
    """job(system, **settings) of an experiment of three runs."""

    def made(system="pbs", **settings):
        path = write(solver={"kind": "clustered", "n_values": [2, 3, 4]})
        usual = {"experiment": path, "folder": Path("out"), "directory": path.parent}
        return Job(**{"system": system, **usual, **settings})

    return made


def directives(script):
    return [line for line in script.splitlines() if line.startswith(("#PBS", "#SBATCH"))]


@pytest.mark.parametrize("system", ["pbs", "slurm"])
@pytest.mark.parametrize("more", [{}, {"email": "a.b+c@d-e.org", "queue": "long", "at_once": 2, "cores": 4}])
def test_bash_reads_the_script(job, tmp_path, system, more):
    path = tmp_path / "job.sh"
    said = write_job(job(system, **more), path)
    assert said == f"{'qsub' if system == 'pbs' else 'sbatch'} {path}"
    subprocess.run(["bash", "-n", path], check=True)
    assert path.read_text().startswith("#!/bin/bash\n#")
    assert "{" not in "".join(directives(path.read_text()))


write_job = write


@pytest.mark.parametrize("system", ["pbs", "slurm"])
def test_each_task_runs_its_own_run_wherever_it_is(job, tmp_path, system):
    """With names that a shell would take apart, and a program in the place of Python that says how it was called."""
    odd = tmp_path / "a 'b' $c \"d\" `e` \\f;g"
    odd.mkdir()
    fake = odd / "my python"
    fake.write_text('#!/bin/bash\npwd -P\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    experiment = odd / "exp 1.yaml"
    experiment.write_text(job().experiment.read_text())
    (odd / "tiny_cgp.py").write_text((tmp_path / "tiny_cgp.py").read_text())
    wanted = job(system, experiment=experiment, folder=Path("o u't"), directory=odd, python=str(fake), cores=2)
    write(wanted, tmp_path / "job.sh")
    for task in (None, "2"):
        environment = {} if task is None else {INDEX[system]: task}
        out = subprocess.run(
            ["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert out[0] == str(odd)
        command = ["-m", "lilliput", "cgp", "train", str(experiment), "-o", "o u't", "--jobs", "2", "--only"]
        assert out[1:] == [*command, task or "0"]


def test_directives_say_what_is_wanted(job):
    pbs = directives(job("pbs", walltime="1:30:00", memory="512mb", email="a@b.cz", queue="q@host").script())
    assert "#PBS -J 0-2" in pbs
    assert "#PBS -l walltime=1:30:00" in pbs
    assert "#PBS -l select=1:ncpus=1:mem=512mb" in pbs
    assert {"#PBS -q q@host", "#PBS -M a@b.cz", "#PBS -N exp"} <= set(pbs)
    slurm = directives(job("slurm", walltime="2-00:00:00", at_once=2, name="night").script())
    assert {"#SBATCH --array=0-2%2", "#SBATCH --time=2-00:00:00", "#SBATCH --job-name=night"} <= set(slurm)
    assert not any("mail" in line or "partition" in line for line in slurm)


def test_one_run_is_no_array_in_pbs(job, write):
    wanted = job("pbs")
    single = replace(wanted, experiment=write(solver={"kind": "exact"}))
    assert not any(" -J " in line for line in directives(single.script()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"walltime": "1 day"}, "--walltime 1 day: it is no walltime for a job; write 24:00:00"),
        ({"walltime": "1:00:00\n#PBS -q x"}, "--walltime 1:00:00 #PBS -q x: it is no walltime for a job"),
        ({"memory": "much"}, "--memory much: it is no memory for a job"),
        ({"email": "me"}, "--email me: it is no email for a job; write name@example.org"),
        ({"queue": "a b"}, "--queue a b: it is no queue for a job"),
        ({"name": "-x"}, "--name -x: it is no name for a job"),
        ({"folder": Path("a\nb")}, "folder of a job: a line end or a control character in it; rename it"),
    ],
)
def test_what_no_script_can_hold_is_refused(job, settings, message):
    with pytest.raises(UsageError) as error:
        job(**settings)
    assert str(error.value).startswith(message)


def test_a_system_that_is_not_known_is_refused(job):
    with pytest.raises(UsageError, match="--system lsf: not known; use pbs or slurm"):
        job("lsf")


def test_a_template_of_your_own(job, tmp_path):
    path = tmp_path / "mine.sh"
    path.write_text("#!/bin/sh\n# {{ name }} {{ runs }}\ncd {{ directory }}\n{{ command }} --only $1\n")
    script = job(python=sys.executable).script(path)
    assert script.startswith("#!/bin/sh\n# exp 3\n")
    faults = {
        "{{ nam }}": "'nam' is undefined",
        "ab\n{% if %}": "Expected an expression",
        "{{ name.__class__.__mro__ }}": "access to attribute '__class__' of 'str' object is unsafe",
    }
    for text, found in faults.items():
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            job().script(path)
        assert found in error.value.found
    with pytest.raises(UsageError, match=r"it cannot be read; check the path \(FileNotFoundError\)"):
        job().script(tmp_path / "none.sh")
