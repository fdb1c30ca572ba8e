"""The networks of the course: slice encoder, Bi-LSTM over the slices, and a 3-D CNN beside it."""

from __future__ import annotations

import http.client
from functools import partial

import torch
from torch import nn
from torch.utils import checkpoint as checkpointing


def neighbours(volumes: torch.Tensor) -> torch.Tensor:
    """Give every slice the slice below and the slice above it as extra channels.

    volumes: (B, D, H, W). Returns (B, D, 3, H, W); at both ends the end slice is repeated.
    """
    below = torch.cat([volumes[:, :1], volumes[:, :-1]], dim=1)
    above = torch.cat([volumes[:, 1:], volumes[:, -1:]], dim=1)
    return torch.stack([below, volumes, above], dim=2)


class SliceEncoder(nn.Module):
    """A small 2-D CNN: images (N, 3, H, W) in [0, 1] to (N, features), H and W at least 16.

    GroupNorm looks at one image at a time, so the rest of the batch does not matter. The mean
    over the plane says how much there is of something, the maximum whether it is there at all.
    """

    def __init__(self, width: int = 16, features: int = 128) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(channels, channels[1:], strict=False):
            layers.append(nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1, bias=False))
            layers.append(nn.GroupNorm(8, n_out))
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
        self.project = nn.Linear(2 * channels[-1], features, bias=False)
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.layers(2 * images - 1)
        mean, maximum = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
        return self.project(torch.cat([mean, maximum], dim=1))


class ResNet18Encoder(nn.Module):
    """torchvision's ResNet18 without its last layer: images (N, 3, H, W) to (N, 512)."""

    features = 512

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.network = resnet18(zero_init_residual=True)
        self.network.fc = nn.Identity()
        imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        self.register_buffer("imagenet", imagenet.view(2, 3, 1, 1), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> ResNet18Encoder:
        # The slices of one scan are too alike for batch statistics: keep those of ImageNet.
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.imagenet
        return self.network((images - mean) / deviation)


def resnet18_encoder(pretrained: bool = True) -> ResNet18Encoder:
    """Make a ResNet18 slice encoder, with ImageNet weights where they can be had.

    Without a connection it prints one line and starts from random weights.
    """
    from torchvision.models import ResNet18_Weights

    encoder = ResNet18Encoder()
    weights = imagenet_weights("ResNet18", ResNet18_Weights.IMAGENET1K_V1.url) if pretrained else {}
    if weights:
        del weights["fc.weight"], weights["fc.bias"]
        encoder.network.load_state_dict(weights)
    return encoder


def imagenet_weights(name: str, url: str) -> dict[str, torch.Tensor]:
    """torchvision's published weights, hash-checked; {} and one printed line without them."""
    try:
        return torch.hub.load_state_dict_from_url(
            url, progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: no ImageNet weights ({reason}); starting from random weights instead.")
        return {}


def slice_encoder(encoder: str | nn.Module, pretrained: bool = True) -> nn.Module:
    """The encoder that a name stands for; a module is taken as it is. ValueError, WeightsError."""
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder == "small":
        return SliceEncoder()
    if encoder == "resnet18":
        return resnet18_encoder(pretrained)
    if encoder == "imagenet":
        from helpers.lite0 import Lite0Encoder

        return Lite0Encoder()
    raise ValueError(f"encoder={encoder!r}: give 'small', 'resnet18', 'imagenet' or a module")


def usual_chunk(device: torch.device, checkpoint: bool) -> int:
    """How many slices to encode at a time: on a CPU few, since they should fit its cache."""
    if device.type == "cpu":
        return 16
    return 64 if checkpoint else 256


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

    volumes (B, D, H, W) in [0, 1] to logits (B,) and attention (B, D), in the slices' order.

    encoder: "small", "resnet18", "imagenet" (EfficientNet-Lite0), a module (N, 3, H, W) ->
    (N, encoder.features), or the number of features where these were computed beforehand: then
    (B, D, F) takes the place of the volumes.
    Controls: sequence="none" leaves the LSTM out, pooling="mean" weighs all slices alike, and
    shuffle_slices=True reads every scan in a random order, from torch's random numbers.
    checkpoint=True computes the encoder's activations again in the backward pass instead of
    keeping them: less memory, more time. chunk: slices encoded at a time, by default `usual_chunk`.
    """

    def __init__(
        self,
        encoder: str | int | nn.Module = "small",
        hidden: int = 64,
        dropout: float = 0.3,
        sequence: str = "lstm",
        pooling: str = "attention",
        shuffle_slices: bool = False,
        chunk: int | None = None,
        checkpoint: bool = False,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        if sequence not in ("lstm", "none") or pooling not in ("attention", "mean"):
            raise ValueError(f"sequence={sequence!r} or pooling={pooling!r} is unknown")
        width = encoder if isinstance(encoder, int) else 0
        self.encoder = None if width else slice_encoder(encoder, pretrained)
        self.shuffle_slices = shuffle_slices
        self.chunk, self.checkpoint = chunk, checkpoint
        width = width or self.encoder.features
        # The slices of all scans look much alike; this takes away what they have in common.
        self.standardise = nn.BatchNorm1d(width)
        self.lstm = None
        if sequence == "lstm":
            self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
            width = 2 * hidden
        self.pooling = AttentionPooling(width) if pooling == "attention" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)

    def extra_repr(self) -> str:
        return f"shuffle_slices={self.shuffle_slices}"

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        """Standardised features of every slice: volumes (B, D, H, W) to (B, D, F)."""
        features = volumes.flatten(0, 1)
        if self.encoder is not None:
            images = neighbours(volumes).flatten(0, 1)
            chunk = self.chunk or usual_chunk(volumes.device, self.checkpoint)
            parts = images.split(chunk)
            if self.checkpoint and self.training:
                again = partial(checkpointing.checkpoint, self.encoder, use_reentrant=False)
                features = torch.cat([again(part) for part in parts])
            else:
                features = torch.cat([self.encoder(part) for part in parts])
        return self.standardise(features).unflatten(0, volumes.shape[:2])

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sequence = self.encode(volumes)
        n_scans, n_slices = volumes.shape[:2]
        order = torch.arange(n_slices).expand(n_scans, -1)
        if self.shuffle_slices:
            order = torch.rand(n_scans, n_slices).argsort(dim=1)
        # drawn on the CPU: the same order on every device
        order = order.to(volumes.device)
        sequence = torch.take_along_dim(sequence, order.unsqueeze(-1), dim=1)
        if self.lstm is not None:
            sequence, _ = self.lstm(sequence)
        if self.pooling is not None:
            pooled, attention = self.pooling(sequence)
        else:
            pooled = sequence.mean(dim=1)
            attention = torch.full(order.shape, 1 / n_slices, device=volumes.device)
        logits = self.head(self.dropout(pooled)).squeeze(-1)
        return logits, torch.zeros_like(attention).scatter(1, order, attention)


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
