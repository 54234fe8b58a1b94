"""One finished run of each kind of task."""

import pytest

from task_kinds import KINDS, compressed, model_and_task

BUDGETS = {"max_drop": "1%", "max_bytes": "1MB", "max_ram": "1MiB"}


@pytest.fixture(scope="session", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """results(kind): a run with three budgets, made when it is first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = compressed(kind, tmp_path_factory.mktemp(kind) / kind, **BUDGETS)
        return made[kind]

    return get


@pytest.fixture
def result(results, kind):
    return results(kind)


@pytest.fixture
def task(kind):
    return model_and_task(kind)[1]
