"""Scores against other people's definitions: scipy, scikit-learn, a naive confusion matrix, formulas worked by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, roc_auc_score
from sklearn.metrics import mean_absolute_error as sk_mae

from lilliput.core.errors import DataError, UsageError
from lilliput.core.score import (
    Score,
    accuracy,
    auc,
    mean_absolute_error,
    mean_iou,
    parse_drop,
    reconstruction_auc,
)
from strategies import generator_of, law, seeds

Z = 1.959963984540054


def bits(right, n):
    return (torch.arange(n) < right).double()[:, None]


def column(score_values):
    return torch.tensor(score_values, dtype=torch.float64)[:, None]


# Accuracy and its intervals


@given(seeds, st.integers(1, 60), st.integers(2, 6))
@law(60)
def test_accuracy_is_that_of_scikit_learn(seed, n, classes):
    generator = generator_of(seed)
    outputs, targets = torch.randn((n, classes), generator=generator), torch.randint(classes, (n,), generator=generator)
    score = accuracy()
    for wanted in (targets, targets[:, None]):
        rows = score.statistics(outputs, wanted)
        assert rows.shape == (n, 1)
        assert score.value(rows) == pytest.approx(100 * accuracy_score(targets, outputs.argmax(1)))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@law(150)
def test_interval_of_a_share_is_wilsons(case):
    right, n = case
    low, high = accuracy().interval(bits(right, n))
    expected = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert 0 <= low <= 100 * right / n + 1e-9
    assert 100 * right / n - 1e-9 <= high <= 100


def test_interval_of_a_share_known_by_hand():
    assert accuracy().interval(bits(8, 10)) == pytest.approx((49.01625, 94.33178), abs=1e-5)
    assert accuracy().interval(bits(0, 10)) == pytest.approx((0, 27.75328), abs=1e-5)
    assert accuracy().interval(bits(10, 10)) == pytest.approx((72.24672, 100), abs=1e-5)


def paired(both, gained, lost, neither):
    now = [1] * both + [1] * gained + [0] * lost + [0] * neither
    before = [1] * both + [0] * gained + [1] * lost + [0] * neither
    return column(now), column(before)


def test_difference_of_shares_is_agresti_and_mins():
    """Approval ratings of one panel, asked twice (Agresti, Categorical Data Analysis, table 10.1)."""
    value, (low, high) = accuracy().difference(*paired(794, 86, 150, 570))
    assert value == pytest.approx(-4.0)
    centre, half = -64 / 1602, Z * math.sqrt(237 - 64**2 / 1602) / 1602
    assert (low, high) == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    assert (low, high) == pytest.approx((-5.9, -2.1), abs=0.05)  # Wald's, published: (-0.06, -0.02)


@given(*[st.integers(0, 40)] * 4)
@law(100)
def test_difference_is_antisymmetric_and_never_certain(both, gained, lost, neither):
    if both + gained + lost + neither == 0:
        both = 1
    score, (now, before) = accuracy(), paired(both, gained, lost, neither)
    value, (low, high) = score.difference(now, before)
    opposite, (other_low, other_high) = score.difference(before, now)
    assert (value, low, high) == pytest.approx((-opposite, -other_high, -other_low))
    assert value == pytest.approx(100 * (gained - lost) / len(now))
    assert low < high
    assert low <= value + 1e-9
    assert value - 1e-9 <= high


def test_no_disagreement_is_not_certainty():
    value, (low, high) = accuracy().difference(*paired(90, 0, 0, 10))
    assert value == 0
    assert (low, high) == pytest.approx((-100 * Z / 102, 100 * Z / 102))


# Means


@given(seeds, st.integers(2, 60), st.integers(1, 3))
@law(60)
def test_mae_is_that_of_scikit_learn_with_a_normal_interval(seed, n, d):
    generator = generator_of(seed)
    outputs, targets = torch.randn((2, n, d), generator=generator)
    score = mean_absolute_error("mg")
    rows = score.statistics(outputs, targets)
    assert score.value(rows) == pytest.approx(sk_mae(targets, outputs), rel=1e-6)
    each = (outputs - targets).abs().double().mean(1).numpy()
    half = Z * each.std(ddof=1) / math.sqrt(n)
    assert score.interval(rows) == pytest.approx((each.mean() - half, each.mean() + half), rel=1e-6)
    value, (low, high) = score.difference(rows, rows)
    assert (value, low, high) == (0, 0, 0)
    assert not score.higher_is_better


def test_paired_difference_of_means_is_that_of_the_differences():
    score = mean_absolute_error()
    value, interval = score.difference(column([1.0, 2, 3, 6]), column([0.0, 2, 2, 2]))
    half = Z * np.std([1, 0, 1, 4], ddof=1) / 2
    assert value == 1.5
    assert interval == pytest.approx((1.5 - half, 1.5 + half))


def test_one_sample_says_nothing_about_a_mean():
    score = mean_absolute_error()
    assert score.interval(column([2.0])) == (-math.inf, math.inf)
    assert score.difference(column([2.0]), column([1.0])) == (1.0, (-math.inf, math.inf))


def test_outputs_are_compared_with_their_own_targets_only():
    score = mean_absolute_error()
    assert score.value(score.statistics(torch.zeros(3, 1), torch.ones(3))) == 1
    assert score.value(score.statistics(torch.zeros(3), torch.ones(3, 1))) == 1
    with pytest.raises(DataError) as error:
        score.statistics(torch.zeros(3, 3), torch.ones(3))
    assert str(error.value) == (
        "a score: outputs of shape (3, 3) for targets of shape (3,); let the model give one number for each target"
    )
    with pytest.raises(DataError, match="one number for each target"):
        score.statistics(torch.zeros(3, 2), torch.ones(2, 3))


# AUC


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60))
@law(150)
def test_auc_is_that_of_scikit_learn_with_ties(pairs):
    values, labels = (torch.tensor(v, dtype=torch.float64) for v in zip(*pairs, strict=True))
    rows = torch.stack([values, labels], 1)
    if len(set(labels.tolist())) < 2:
        assert math.isnan(auc(rows))
    else:
        assert auc(rows) == pytest.approx(roc_auc_score(labels, values))
        assert auc(torch.stack([-values, labels], 1)) == pytest.approx(1 - auc(rows))


def test_auc_of_reconstructions_counts_larger_errors_as_anomalies():
    score = reconstruction_auc()
    inputs, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    outputs = torch.tensor([[1.0, 1], [1, 2], [0, 0], [1, 1]])
    rows = score.statistics(outputs, (inputs, labels))
    assert rows.tolist() == [[1, 0], [2.5, 1], [0, 0], [1, 1]]
    assert score.value(rows) == 87.5
    assert score.higher_is_better


def test_auc_without_anomalies_is_an_error_that_says_so():
    with pytest.raises(DataError) as error:
        reconstruction_auc().value(torch.tensor([[0.5, 0.0], [0.7, 0.0]]))
    assert str(error.value) == (
        "score AUC: the result is not a number; look for NaN outputs, or for a class that never appears"
    )


def test_bootstrap_is_seeded_and_leaves_the_global_generator_alone():
    generator = generator_of(0)
    labels = torch.arange(200) % 2
    first = torch.stack([torch.rand(200, generator=generator) + 0.4 * labels, labels.double()], 1)
    second = torch.stack([torch.rand(200, generator=generator) + 0.4 * labels, labels.double()], 1)
    score, state = reconstruction_auc(), torch.random.get_rng_state()
    low, high = score.interval(first)
    assert (low, high) == score.interval(first)
    assert low < score.value(first) < high
    value, (low, high) = score.difference(first, second)
    assert low < value < high
    assert score.difference(first, first) == (0, (0, 0))
    assert torch.equal(torch.random.get_rng_state(), state)


# Mean IoU


@given(seeds, st.integers(1, 4), st.integers(2, 4))
@law(60)
def test_mean_iou_is_that_of_a_confusion_matrix(seed, n, classes):
    generator = generator_of(seed)
    outputs = torch.randn((n, classes, 3, 2), generator=generator)
    targets = torch.randint(classes, (n, 3, 2), generator=generator)
    score = mean_iou(classes)
    matrix = confusion_matrix(targets.flatten(), outputs.argmax(1).flatten(), labels=list(range(classes)))
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    expected = (matrix.diagonal()[union > 0] / union[union > 0]).mean()
    assert score.value(score.statistics(outputs, targets)) == pytest.approx(100 * expected)


def test_mean_iou_counts_the_whole_set_and_only_classes_that_appear():
    score = mean_iou(5)
    outputs = torch.nn.functional.one_hot(torch.tensor([[[0, 0]], [[1, 1]]]), 5).permute(0, 3, 1, 2)
    rows = score.statistics(outputs, torch.tensor([[[0, 1]], [[1, 1]]]))
    assert score.value(rows) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


# What is refused


@pytest.mark.parametrize("score", [accuracy(), mean_absolute_error(), reconstruction_auc(), mean_iou(2)])
def test_no_samples_have_no_score(score):
    for call in (score.value, score.interval, lambda rows: score.difference(rows, rows)):
        with pytest.raises(DataError, match=f"score {score.name}: no samples; give a data set that is not empty"):
            call(torch.zeros(0, 2))


def test_other_samples_cannot_be_compared():
    with pytest.raises(UsageError, match="paired difference: 3 and 2 samples; score the same samples"):
        accuracy().difference(bits(1, 3), bits(1, 2))


@pytest.mark.parametrize(
    ("score", "targets", "text"),
    [
        (accuracy(), [0, 1], "a score: targets of type list; give tensors of targets"),
        (mean_absolute_error(), None, "a score: targets of type NoneType; give tensors of targets"),
        (reconstruction_auc(), torch.zeros(2), "a reconstruction score: targets that are not .inputs, labels.; use"),
        (mean_iou(2), {}, "a score: targets of type dict; give tensors of targets"),
    ],
)
def test_targets_of_another_kind_are_refused(score, targets, text):
    with pytest.raises(DataError, match=text):
        score.statistics(torch.zeros(2, 2), targets)


def test_own_scores_are_means_of_the_first_column():
    score = Score(name="gain", unit="dB", statistics=lambda outputs, targets: outputs)
    assert score.value(torch.tensor([[1.0, 9], [2, 9]])) == 1.5
    assert score.format(1.5) == "1.5 dB"
    assert accuracy().format(91.234) == "91.23%"
    assert mean_absolute_error().format(0.123456) == "0.1235"


# Allowed drops


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.5pt", 0.5),
        ("1%", 0.9),
        (" 2 pt ", 2),
        (".5pt", 0.5),
        ("5.pt", 5),
        ("1e-1%", 0.09),
        ("0.25", 0.25),
        (0.25, 0.25),
        (1, 1),
        ("0pt", 0),
        (0, 0),
    ],
)
def test_drop_of_a_score_in_percent(text, limit):
    assert parse_drop(text, accuracy(), 90.0) == pytest.approx(limit)


@pytest.mark.parametrize(("text", "limit"), [("5%", 0.1), ("0.3", 0.3), (0.3, 0.3)])
def test_drop_of_a_score_in_its_own_unit(text, limit):
    assert parse_drop(text, mean_absolute_error("mg"), 2.0) == pytest.approx(limit)
    assert parse_drop(text, mean_absolute_error("mg"), -2.0) == pytest.approx(limit)


NUMBER = 'not a number with a unit; write "0.5pt", "1%" or a number in the score\'s unit'
RANGE = 'a drop that is not a finite number from 0 up; write for example "0.5pt"'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("half a point", NUMBER),
        ("", NUMBER),
        ("pt", NUMBER),
        ("0.5%pt", NUMBER),
        ("0.5 points", NUMBER),
        ("-1pt", NUMBER),
        ("1_0", NUMBER),
        ("nan", NUMBER),
        ("inf%", NUMBER),
        (True, NUMBER),
        (None, NUMBER),
        (-0.1, RANGE),
        (float("nan"), RANGE),
        (float("inf"), RANGE),
        ("1e999", RANGE),
    ],
)
def test_drop_that_is_not_one_is_refused(text, found):
    with pytest.raises(UsageError) as error:
        parse_drop(text, accuracy(), 90.0)
    assert str(error.value) == f"max_drop={text!r}: {found}"


def test_points_are_for_percent_only():
    with pytest.raises(UsageError) as error:
        parse_drop("0.5pt", mean_absolute_error("mg"), 2.0)
    assert str(error.value) == ("max_drop='0.5pt': MAE is not in percent; write \"1%\" or a number in the score's unit")


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_accuracy_of_one_output_is_refused_for_its_class_would_always_be_the_same(shape):
    with pytest.raises(DataError, match="one output for each class"):
        accuracy().statistics(torch.randn(shape), torch.zeros(6, dtype=torch.int64))
