"""The cache of steps: what was used last stays, within a number of bytes, and what the best begin with."""

import os

import pytest

from lilliput.core import container
from lilliput.core.artifact import Artifact
from lilliput.methods.normalization.batchnorm import FoldBatchNorm
from lilliput.methods.pruning.magnitude import MagnitudePruning
from lilliput.methods.quantization.post_training import Quantization
from lilliput.pipeline.cache import StepCache
from lilliput.pipeline.recipe import Recipe, Step
from lilliput.testing import tiny_model, tiny_task


def recipe_of(sparsity):
    passes = (FoldBatchNorm(), MagnitudePruning(sparsity=sparsity), Quantization())
    return Recipe(steps=tuple(Step(passes=(p,)) for p in passes), threads=1)


RECIPES = [recipe_of(s) for s in (0.1, 0.2, 0.3, 0.4)]
MODEL, SPEC = tiny_model("batch_norm"), tiny_task().spec
ARTIFACT = Artifact.of(MODEL, SPEC)


def kept(cache, recipe):
    """Both steps of a recipe, as a run keeps them."""
    for steps in (1, 2):
        cache.keep(recipe, ARTIFACT, [{"step": n} for n in range(steps)], {})


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.fixture
def cache(tmp_path):
    """Room for three networks: the common first step, and two of the second steps."""
    room = 3 * (len(container.dumps(ARTIFACT)) + 200)
    return StepCache(tmp_path, {"model": "tiny"}, most_bytes=room)


def aged(cache, recipe, seconds):
    for steps in (1, 2):
        for path in (cache.after(recipe, steps), cache.after(recipe, steps).with_suffix(".json")):
            if path.exists():
                os.utime(path, (seconds, seconds))


def there(cache):
    return [cache.after(recipe, 2).exists() for recipe in RECIPES]


def test_what_was_not_used_for_longest_goes_first_and_the_bytes_are_kept(cache):
    for age, recipe in enumerate(RECIPES):
        kept(cache, recipe)
        aged(cache, recipe, 1000 + age)
        assert bytes_in(cache.folder) <= cache.most_bytes
    assert there(cache) == [False, False, True, True]


def test_what_was_used_again_stays(cache):
    for age, recipe in enumerate(RECIPES[:2]):
        kept(cache, recipe)
        aged(cache, recipe, 1000 + age)
    assert cache.longest(RECIPES[0], MODEL, SPEC) is not None
    for recipe in RECIPES[2:]:
        kept(cache, recipe)
        os.utime(cache.after(recipe, 2), (2000, 2000))
    assert there(cache)[0]
    assert not there(cache)[1]


def test_what_the_best_begin_with_stays_whatever_its_age(cache):
    for age, recipe in enumerate(RECIPES):
        kept(cache, recipe)
        aged(cache, recipe, 1000 + age)
        cache.needed = RECIPES[:1]
    assert there(cache)[0]
    assert cache.steps_of(RECIPES[0]) == 2


def test_steps_are_counted_from_the_first_that_is_missing(cache):
    kept(cache, RECIPES[0])
    assert cache.steps_of(RECIPES[0]) == 2
    assert cache.steps_of(RECIPES[1]) == 1
    cache.after(RECIPES[0], 1).unlink()
    assert cache.steps_of(RECIPES[0]) == 0
