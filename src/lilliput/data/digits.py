"""The 1,797 handwritten digits (8x8, 17 grey levels) that scikit-learn ships: no file, no download."""

import torch

from lilliput.data.dataset import RawData

_PARTS = 5


def read_digits() -> RawData:
    """uint8 images [n, 1, 8, 8], values 0..16; 1,437 for training (360 of them for validation) and 360 for test.

    The publisher has no split, so it is ours: in the order by class, then file, every fifth sample is a test sample
    and the one after it a validation sample; each class is split alike to within one sample. The 360 validation
    samples are the last rows of `train`. Writers are not recorded: the same hand may write in all three roles, so
    scores here are higher than on the digits of new writers.
    Source: Alpaydin & Kaynak (1998), "Optical Recognition of Handwritten Digits"; its test part.
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(classes).to(torch.int64)
    place = torch.argsort(torch.argsort(labels, stable=True)) % _PARTS
    rows = torch.arange(len(labels))
    train, validation, test = rows[place > 1], rows[place == 1], rows[place == 0]
    fitted = torch.cat([train, validation])
    return RawData(
        name="digits",
        train=(images[fitted], labels[fitted]),
        test=(images[test], labels[test]),
        labels=tuple("0123456789"),
        validation_rows=torch.arange(len(train), len(fitted)),
        source="scikit-learn, load_digits",
    )
