import torch

from lilliput.data.digits import read_digits
from lilliput.data.roles import by_role


def test_digits_have_the_documented_sizes_and_values():
    data = read_digits()
    sizes = {role: len(labels) for role, (_, labels) in by_role(data).items()}
    assert sizes == {"train": 1077, "validation": 360, "test": 360}
    assert data.train[0].shape == (1437, 1, 8, 8)
    assert data.train[0].dtype == torch.uint8
    assert int(data.train[0].max()) == 16


def test_every_role_has_its_share_of_every_digit():
    parts = [labels.bincount(minlength=10) for _, labels in by_role(read_digits()).values()]
    whole = torch.stack(parts).sum(0)
    for part, share in zip(parts, (3 / 5, 1 / 5, 1 / 5), strict=True):
        assert bool(((part - share * whole).abs() < 1.3).all())


def test_roles_hold_every_digit_of_the_source_once():
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    published = sorted((*image.astype(int).tolist(), int(label)) for image, label in zip(pixels, classes, strict=True))
    ours = [
        (*image.flatten().tolist(), int(label))
        for images, labels in by_role(read_digits()).values()
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(ours) == published


def test_validation_rows_are_the_last_of_the_training_rows():
    assert read_digits().validation_rows.tolist() == list(range(1077, 1437))
