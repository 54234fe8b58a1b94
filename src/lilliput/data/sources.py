"""Where published data sets can be downloaded, with the checksums that their publishers or torchvision give."""

from dataclasses import dataclass

from lilliput.data import cifar10, mnist, svhn


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One file: its mirrors in the order to try, and, for an archive, the files to take out of it (else none)."""

    file: str
    checksum: str
    urls: tuple[str, ...]
    members: tuple[str, ...] = ()


def _idx(mirrors: tuple[str, ...], sums: tuple[str, ...]) -> tuple[Remote, ...]:
    return tuple(
        Remote(file=f"{file}.gz", checksum=f"md5:{md5}", urls=tuple(f"{mirror}{file}.gz" for mirror in mirrors))
        for file, md5 in zip(mnist.FILES, sums, strict=True)
    )


def _svhn(*files: str) -> tuple[Remote, ...]:
    site = "http://ufldl.stanford.edu/housenumbers/"
    return tuple(Remote(file=f, checksum=f"md5:{svhn.PUBLISHED[f]}", urls=(f"{site}{f}",)) for f in files)


REMOTES = {
    "mnist": _idx(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _idx(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": (
        Remote(
            file="cifar-10-binary.tar.gz",
            checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            members=tuple(f"cifar-10-batches-bin/{name}.bin" for name in cifar10.TRAIN + cifar10.TEST),
        ),
    ),
    "svhn": _svhn(svhn.TRAIN, svhn.TEST),
    "svhn-extra": _svhn(svhn.TRAIN, svhn.TEST, svhn.EXTRA),
}
