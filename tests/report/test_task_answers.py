"""Answers before and after, against the saved network run by hand and other people's metrics."""

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

import lilliput as ll
from lilliput.core.artifact import InputSpec
from lilliput.report.changed import SHOWN, SIDE, thumbnail
from lilliput.report.html.page import folder_page
from lilliput.report.png import png
from page_parser import Page
from task_kinds import model_and_task


@pytest.fixture(scope="module")
def both(results):
    """both(kind): inputs and targets of test, what the original answers, and what the file answers."""

    def made(kind):
        model, task = model_and_task(kind)
        x, y = task.data("test").inputs, task.data("test").targets
        net = ll.load(results(kind).folder / "net.lil")
        with torch.no_grad():
            return x, y, model(x), net(x)

    return made


def data_of(results, kind):
    result = results(kind)
    return result.details["answers"], Page(folder_page(result.folder)).section("answers")


def test_confusions_are_those_of_the_answers(both, results):
    _, y, before, after = both("classification")
    data, _ = data_of(results, "classification")
    assert data["before"] == confusion_matrix(y, before.argmax(1), labels=range(3)).tolist()
    assert data["after"] == confusion_matrix(y, after.argmax(1), labels=range(3)).tolist()
    moved = np.array(data["after"]) - np.array(data["before"])
    assert len(data["changes"]) == np.count_nonzero(moved)
    page = Page(folder_page(results("classification").folder))
    counts = [int(e.text) for e in page.all("text", "count", inside=page.section("answers"))]
    assert counts == [v for v in moved.reshape(-1).tolist() if v]


def test_residuals_are_outputs_minus_targets(both, results):
    _, y, before, after = both("regression")
    data, _ = data_of(results, "regression")
    points = np.array(data["points"])
    np.testing.assert_allclose(points[:, 1], (before - y).reshape(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(points[:, 2], (after - y).reshape(-1), rtol=1e-5, atol=1e-6)
    for counts, outputs in zip(data["counts"], (before, after), strict=True):
        assert counts == np.histogram((outputs.double() - y.double()).numpy(), bins=data["edges"])[0].tolist()


def test_a_threshold_leaves_a_twentieth_of_the_normal_samples_above(both, results):
    x, y, before, after = both("anomaly")
    data, section = data_of(results, "anomaly")
    for side, outputs in enumerate((before, after)):
        errors = (outputs - x).square().mean(1).double()
        normal, odd = errors[y == 0], errors[y == 1]
        limit = data["thresholds"][side]
        assert limit == pytest.approx(float(np.quantile(normal, 0.95, method="inverted_cdf")), rel=1e-6)
        false, found = data["above"][2 * side], data["above"][2 * side + 1]
        assert found == [int((odd > limit * (1 + 1e-9)).sum()), len(odd)]
        assert false[0] <= 0.05 * false[1]
        assert sum(data["counts"][2 * side]) == len(normal)
        assert sum(data["counts"][2 * side + 1]) == len(odd)
        assert f"{found[0]} of {found[1]} anomalies" in section.text


def test_iou_of_each_class(both, results):
    _, y, before, after = both("segmentation")
    data, section = data_of(results, "segmentation")
    for key, outputs in (("before", before), ("after", after)):
        answers = outputs.argmax(1).reshape(-1)
        wanted = [jaccard_score(y.reshape(-1) == c, answers == c) for c in range(3)]
        assert data[key] == pytest.approx(wanted)
        assert all(f"{100 * v:.2f}%" in section.text for v in wanted)


def test_changed_samples_are_those_whose_answer_changed(both, results):
    x, y, before, after = both("classification")
    found = results("classification").details["samples"]
    a, b = before.argmax(1), after.argmax(1)
    lost = torch.nonzero((a == y) & (b != y)).reshape(-1).tolist()
    gained = torch.nonzero((a != y) & (b == y)).reshape(-1).tolist()
    assert (found["lost"], found["gained"], found["samples"]) == (len(lost), len(gained), len(x))
    assert [(s["state"], s["index"]) for s in found["shown"]] == [("lost", i) for i in lost] + [
        ("gained", i) for i in gained
    ]
    labels = model_and_task("classification")[1].labels
    for s in found["shown"]:
        i = s["index"]
        assert (s["label"], s["before"], s["after"]) == (labels[y[i]], labels[a[i]], labels[b[i]])


def test_each_shown_sample_is_on_the_page(result):
    found = result.details["samples"]
    page = Page(folder_page(result.folder))
    section = page.section("samples")
    changed = found["lost"] + found["gained"] + found["both_wrong"]
    items = page.all("li", inside=section)
    assert len(items) == len(found["shown"]) == min(changed, SHOWN)
    assert [e.text.split(",")[0].split()[0] for e in items] == [
        f"#{s['index']}" if s["label"] else f"#{s['index']}{s['before']}" for s in found["shown"]
    ]
    pictures = [e["src"] for e in page.all("img", inside=section)]
    assert pictures == [f"data:image/png;base64,{s['picture']}" for s in found["shown"] if s["picture"]]


def test_a_score_of_ones_own_has_no_panel_that_would_misread_it():
    model, task = model_and_task("anomaly")

    def error(outputs, targets):
        return (outputs - targets[0]).abs().mean(1)[:, None]

    score = ll.Score(name="mean error", statistics=error)
    own = ll.Task.anomaly(train=task.train, validation=task.validation, test=task.test, score=score)
    details = ll.compress(model, own, recipe=[ll.Quantization(weight_bits=2)]).details
    assert details["answers"] is None
    assert {s["after"] for s in details["samples"]["shown"]} <= {"acceptable", "not acceptable"}


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_a_png_holds_its_pixels(pixels):
    with Image.open(io.BytesIO(png(pixels))) as image:
        image.load()
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_a_thumbnail_shows_what_the_network_was_given_before_it_was_normalized():
    raw = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    x = (raw - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)
    found = decoded(thumbnail(x, InputSpec(shape=(3, 6, 5), mean=mean, std=std)))
    np.testing.assert_allclose(found / 255, raw.movedim(0, -1), atol=0.003)


def test_large_pictures_become_small_ones_and_other_inputs_none():
    spec = InputSpec(shape=(1, 100, 200))
    picture = decoded(thumbnail(torch.linspace(0, 1, 20000).reshape(1, 100, 200), spec))
    assert max(picture.shape) <= SIDE
    assert picture[0, 0] < picture[-1, -1]
    assert thumbnail(torch.zeros(16), InputSpec(shape=(16,))) is None
    assert thumbnail(torch.zeros(2, 8, 8), InputSpec(shape=(2, 8, 8))) is None
    assert decoded(thumbnail(torch.full((1, 4, 4), 7.0), InputSpec(shape=(1, 4, 4)))).shape == (4, 4)
