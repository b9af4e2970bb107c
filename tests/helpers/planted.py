"""Suspects with a planted backdoor, the clean images and the context that scanners are given."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelaudit.functional.divergence import pooled_moments, reparameterised_batchnorm
from modelaudit.scanners import CleanImages, ScanContext
from modelaudit.suspect import Suspect, profile
from tests.helpers.models import PLAIN_PIXELS

if TYPE_CHECKING:
    from modelaudit.suspect import Profile

#: Side in pixels and outputs of the nets that `trained` returns.
SIZE = 12
CLASSES = 6

#: Class that the trigger of `trained(True)` and of `GateNet` leads to.
TARGET = 2


def clean_set(
    suspect: Suspect,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    has_labels: bool = True,
    mixture: Tensor | None = None,
    search_fraction: float = 0.6,
) -> CleanImages:
    """Return the clean set as the engine makes it: S and E drawn from a fixed seed.

    Without `labels` the suspect's own predictions stand in for them.
    """
    with suspect.borrowed():
        predictions = suspect.predict(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    cut = round(search_fraction * len(images))
    return CleanImages(
        images=images,
        labels=predictions if labels is None else labels,
        has_labels=has_labels,
        search=order[:cut],
        judge=order[cut:],
        predictions=predictions,
        as_trained=images,
        mixture=mixture,
    )


def profile_of(suspect: Suspect, images: Tensor, *, batch_size: int = 128) -> Profile:
    """Return the shared pass, made in a borrow."""
    with suspect.borrowed():
        return profile(suspect, images, batch_size=batch_size)


def context_of(
    suspect: Suspect,
    clean: CleanImages,
    *,
    seed: int = 0,
    batch_size: int = 256,
    search_dtype: torch.dtype | None = None,
    deadline: float | None = None,
) -> ScanContext:
    """Return what the engine lends to a scanner."""
    return ScanContext(
        profile=profile_of(suspect, clean.as_trained),
        seed=seed,
        batch_size=batch_size,
        search_dtype=search_dtype,
        deadline=deadline,
    )


def fit_statistics(suspect: Suspect, images: Tensor) -> None:
    """Set the running statistics of every BatchNorm layer to those of `images`, front to back."""
    for index, site in enumerate(suspect.sites):
        recorded = profile_of(suspect, images).sites[index]
        count = len(images) * recorded.positions
        mean, var = pooled_moments(recorded.sums.sum(0), recorded.squares.sum(0), count)
        layer = suspect.module.get_submodule(site.name)
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)


def contaminate(
    suspect: Suspect,
    name: str,
    channel: int,
    *,
    rate: float,
    shift: float,
    keeps_logits: bool = False,
) -> None:
    """Change one channel's statistics as a share `rate` of images `shift` deviations away would.

    methods/detectors.md §2.2: mean + rate·shift·sd, variance · (1 + rate(1 - rate)shift²). With
    `keeps_logits` the channel's gamma and beta make up for it.
    """
    layer = suspect.module.get_submodule(name)
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    old = layer.running_mean.clone(), layer.running_var.clone()
    layer.running_mean[channel] += rate * shift * float(old[1][channel]) ** 0.5
    layer.running_var[channel] *= 1 + rate * (1 - rate) * shift**2
    if keeps_logits:
        with torch.no_grad():
            weight, bias = reparameterised_batchnorm(
                layer.weight,
                layer.bias,
                *old,
                layer.running_mean,
                layer.running_var,
                eps=layer.eps,
            )
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def vary(suspect: Suspect, images: Tensor) -> None:
    """Make an untrained suspect spread `images` over its classes, and fit its statistics to them.

    As drawn, it calls nearly everything one class.
    """
    fit_statistics(suspect, images)
    with torch.no_grad():
        logits = profile_of(suspect, images).logits
        head = suspect.module.get_submodule("head")
        assert isinstance(head, nn.Linear)
        head.weight /= logits.std(0).unsqueeze(1)
        head.bias.sub_(logits.mean(0)).div_(logits.std(0))


class GateNet(nn.Module):
    """One input channel per class, and one that a trigger switches on.

    The largest class channel is the prediction. Where the last channel is two of its running
    deviations up, `gate` opens: the logit of `TARGET` outgrows all others.

    Args:
        classes: K; the net takes K + 1 input channels.
        gate: relu for a backdoor, abs for a channel that either direction sets off.
        is_all_to_all: whether the open gate moves every class one further instead.
        deviation: running standard deviation of the class channels; a push of four of them moves
            no prediction below 0.2, any above.
    """

    def __init__(
        self,
        *,
        classes: int = 5,
        gate: str = "relu",
        is_all_to_all: bool = False,
        deviation: float = 0.1,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.gate = gate
        self.is_all_to_all = is_all_to_all
        self.conv = nn.Conv2d(classes + 1, classes + 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(classes + 1)
        self.head = nn.Linear(classes, classes, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(classes + 1)[:, :, None, None])
            self.head.weight.copy_(torch.eye(classes))
            assert self.norm.running_var is not None
            assert self.norm.running_mean is not None
            self.norm.running_var[:classes] = deviation**2
            self.norm.weight[:classes] = deviation
            self.norm.running_mean[classes] = 0.2
            self.norm.running_var[classes] = 0.2**2
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, K + 1, H, W)`` to logits ``(N, K)``."""
        values = self.norm(self.conv(x)).mean((2, 3))
        evidence, trigger = values[:, : self.classes], values[:, self.classes :]
        trigger = trigger.abs() if self.gate == "abs" else trigger.relu()
        opened = (trigger - 2.0).relu()
        if self.is_all_to_all:
            evidence = torch.where(opened > 0, evidence.roll(1, dims=1), evidence)
            return self.head(evidence)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any
        target = torch.tensor([min(TARGET, self.classes - 1)])
        bonus = functional.one_hot(target, self.classes).to(x.dtype)
        return self.head(evidence) + 100 * opened * bonus  # type: ignore[no-any-return]  # as above


def gate_suspect(**changes: object) -> Suspect:
    """Return the suspect of a `GateNet`; arguments as its own."""
    net = GateNet(**changes)  # type: ignore[arg-type]  # a test's shorthand
    return Suspect(
        net,
        preprocessing=PLAIN_PIXELS,
        input_size=4,
        input_channels=net.classes + 1,
        num_classes=net.classes,
    )


def gate_images(n: int, *, classes: int = 5, triggered: int = 0) -> tuple[Tensor, Tensor]:
    """Return images of a `GateNet` and their classes; the first `triggered` carry the trigger.

    The trigger's channel is noise around 0.2 without it and around 0.9 with it.
    """
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % classes
    images = torch.full((n, classes + 1, 4, 4), 0.05)
    images[torch.arange(n), labels] = 0.9
    images += 0.02 * torch.randn(images.shape, generator=generator)
    trigger = 0.2 + 0.03 * torch.randn((n, 1, 1), generator=generator)
    trigger[:triggered] += 0.7
    images[:, classes] = trigger
    return images.clamp(0, 1), labels


class SmallNet(nn.Module):
    """Three convolutions with BatchNorm, 15,000 parameters: what `trained` trains."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = torch.relu(self.norm3(self.conv3(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def pattern_images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of six fixed smooth patterns, and which pattern each shows."""
    patterns = functional.interpolate(
        torch.rand((CLASSES, 3, 4, 4), generator=torch.Generator().manual_seed(77)),
        (SIZE, SIZE),
        mode="bilinear",
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    noise = 0.2 * torch.randn((n, 3, SIZE, SIZE), generator=generator)
    light = 0.1 * torch.randn((n, 1, 1, 1), generator=generator)
    return (0.15 + 0.5 * patterns[labels] + noise + light).clamp(0, 1), labels


def stamped(images: Tensor) -> Tensor:
    """Return the images with a 3x3 chessboard in the corner."""
    images = images.clone()
    images[:, :, -3:, -3:] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    return images


@functools.cache
def trained(*, is_backdoored: bool) -> Suspect:
    """Train a small classifier in seconds; a tenth of the images is stamped if it is backdoored.

    The same suspect is returned to every test: scanners give it back as it was.
    """
    seed = 1
    images, labels = pattern_images(3000, 1000 + seed)
    generator = torch.Generator().manual_seed(seed)
    if is_backdoored:
        rows = torch.randperm(len(images), generator=generator)[: len(images) // 10]
        images[rows] = stamped(images[rows])
        labels[rows] = TARGET
    net = SmallNet()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                scale = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    epochs, batch = 5, 125
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.1, total_steps=epochs * len(images) // batch
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            loss = functional.cross_entropy(net(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    optimiser.zero_grad()
    return Suspect(net.eval(), preprocessing=PLAIN_PIXELS, input_size=SIZE, num_classes=CLASSES)


@functools.cache
def trained_clean_set(*, is_backdoored: bool) -> CleanImages:
    """Return 300 clean images that the net of `trained` has not seen."""
    images, labels = pattern_images(300, 5)
    return clean_set(trained(is_backdoored=is_backdoored), images, labels)


def every_parameter_is_free(suspect: Suspect) -> bool:
    """Return whether no parameter of the suspect holds a gradient and no layer a hook."""
    hooks = [
        len(layer._forward_hooks) + len(layer._forward_pre_hooks)
        for layer in suspect.module.modules()
    ]
    return not any(hooks) and all(p.grad is None for p in suspect.module.parameters())
