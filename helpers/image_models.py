"""Networks for single 2-D images: a small residual network, DenseNet169, and a head for both."""

from __future__ import annotations

import re

import torch
from torch import nn

from helpers.models import imagenet_weights


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a way around them: (B, n_in, H, W) to (B, n_out, H / s, W / s).

    The last norm begins at 0, so that at first the block only passes its input on.
    He et al. 2016, arXiv 1512.03385.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, n_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_out, n_out, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(8, n_out),
        )
        nn.init.zeros_(self.layers[-1].weight)
        self.shortcut = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),  # an odd side is rounded up, as above
                nn.Conv2d(n_in, n_out, kernel_size=1, bias=False),
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(maps) + self.shortcut(maps))


class SmallCNN(nn.Module):
    """A small residual network: grey images (B, 1, H, W) in [0, 1] to (B, features).

    A stem, and four residual blocks of width, 2, 4 and 8 times width; H and W at least 32.
    GroupNorm looks at one image at a time: no image of a batch can give away another, which
    contrastive learning would exploit. The features are the mean and the maximum of each map.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=5, stride=2, padding=2, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 4 * width, stride=2),
            ResidualBlock(4 * width, 8 * width, stride=2),
        )
        self.features = 2 * 8 * width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.blocks(self.stem(2 * images - 1))
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


class DenseNet169Encoder(nn.Module):
    """torchvision's DenseNet169 without its last layer: grey (B, 1, H, W) to (B, 1664).

    The grey image stands in all three channels, normalised as for ImageNet. freeze_norm=True keeps
    BatchNorm's statistics as they are: for contrastive learning from ImageNet weights. `pretrained`
    says whether it began with these. Huang et al. 2017, arXiv 1608.06993.
    """

    features = 1664

    def __init__(self, freeze_norm: bool = False) -> None:
        super().__init__()
        from torchvision.models import densenet169

        self.network = densenet169()
        self.network.classifier = nn.Identity()
        imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        self.register_buffer("imagenet", imagenet.view(2, 3, 1, 1), persistent=False)
        self.freeze_norm, self.pretrained = freeze_norm, False
        self.train()

    def train(self, mode: bool = True) -> DenseNet169Encoder:
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.imagenet
        return self.network((images.expand(-1, 3, -1, -1) - mean) / deviation)


def densenet169_encoder(pretrained: bool = True, freeze_norm: bool = False) -> DenseNet169Encoder:
    """Make a DenseNet169 encoder, with ImageNet weights where they can be had.

    Without a connection it prints one line and starts from random weights, with BatchNorm free.
    """
    from torchvision.models import DenseNet169_Weights

    url = DenseNet169_Weights.IMAGENET1K_V1.url
    weights = imagenet_weights("DenseNet169", url) if pretrained else {}
    encoder = DenseNet169Encoder(freeze_norm and bool(weights))
    # the published file is older than torchvision's names: "norm.1.weight" is "norm1.weight" now
    renamed = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): value
        for name, value in weights.items()
        if not name.startswith("classifier.")
    }
    if renamed:
        encoder.network.load_state_dict(renamed)
        encoder.pretrained = True
    return encoder


class ImageClassifier(nn.Module):
    """An encoder, dropout and one logit: images (B, 1, H, W) in [0, 1] to logits (B,), and None.

    The None stands where the classifiers of 3-D scans return attention, so that the same training
    loop serves both. encoder: (B, 1, H, W) to (B, encoder.features).
    """

    def __init__(self, encoder: nn.Module, dropout: float = 0.3) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.features, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.head(self.dropout(self.encoder(images))).squeeze(-1), None
