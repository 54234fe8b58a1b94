"""Networks for the small tasks whose data needs no download: digits, one-class digits, masks, diabetes, speech.

The architectures are ours, in the shapes that compression has to handle: residual add, concatenation, nearest
upsampling, conv1d, plain MLP. All are small enough that a few seconds on one core train them.

| class | input | output | parameters (default settings) |
|---|---|---|---|
| `DigitsCNN` | [n, 1, 8, 8] | logits [n, n_classes] | 17,602 |
| `TinyAutoencoder` | [n, 1, 8, 8] | reconstruction [n, 1, 8, 8] | 4,744 |
| `TinySegmenter` | [n, 1, 8, 8] | logits [n, n_classes, 8, 8] | 3,034 |
| `TinyRegressor` | [n, n_features] | [n, 1] | 897 |
| `SpeechCNN` | [n, 12, 29] | logits [n, n_classes] | 7,785 |

Data: `load_digits`, `load_diabetes` of scikit-learn; JapaneseVowels (Kudo, Toyama and Shimbo, 1999).
"""

import torch
from torch import Tensor, nn


def _conv_bn(in_channels: int, out_channels: int) -> list[nn.Module]:
    """3x3, same size; no convolution bias, since BatchNorm has one."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)]


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm, the second inside a residual add; about 70 kB of float32."""

    def __init__(self, *, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(1, 24), nn.ReLU())
        self.residual = nn.Sequential(*_conv_bn(24, 24))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.widen = nn.Sequential(*_conv_bn(24, 32), nn.ReLU())
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(32 * 4 * 4, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = self.relu(self.residual(features) + features)
        return self.linear(self.flatten(self.widen(self.pool(features))))


class TinyAutoencoder(nn.Module):
    """MLP 64-32-8-32-64 with a linear code; the reconstruction is linear too, so any pixel range works."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8)))

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


class TinySegmenter(nn.Module):
    """One level of a U-Net (Ronneberger, Fischer and Brox, 2015): pool, upsample (nearest), concatenate."""

    def __init__(self, *, n_classes: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_conv_bn(1, 8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.bottom = nn.Sequential(*_conv_bn(8, 16), nn.ReLU())
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.decoder = nn.Sequential(*_conv_bn(24, 8), nn.ReLU())
        self.head = nn.Conv2d(8, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.encoder(images)
        coarse = self.upsample(self.bottom(self.pool(fine)))
        return self.head(self.decoder(torch.cat([coarse, fine], dim=1)))


class TinyRegressor(nn.Module):
    """MLP n_features-32-16-1. The output keeps its last axis: targets must be [n, 1], or they broadcast."""

    def __init__(self, *, n_features: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class SpeechCNN(nn.Module):
    """Three 1-D convolutions over time with BatchNorm, then the mean over time.

    Input: 12 cepstrum coefficients by 29 frames, shorter utterances padded with zeros. Classes: 9 speakers.
    """

    def __init__(self, *, n_classes: int = 9) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(12, 32, 3, padding=1, bias=False),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm1d(32),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(32, n_classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.layers(frames))))
