"""Tiny deterministic classifiers of every kind that a suspect can be, and images for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.preprocessing import Preprocessing
from modelaudit.suspect import SiteEdit, Suspect

if TYPE_CHECKING:
    from collections.abc import Callable

#: Side of the square input in pixels, and outputs K, of every model here unless it is told.
SIZE = 8
CLASSES = 4

PLAIN_PIXELS = Preprocessing(id="none", mean=(0.0,), std=(1.0,))
HALF = Preprocessing(id="half", mean=(0.5,), std=(0.5,))


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(n: int, *, channels: int = 3, size: int = SIZE, seed: int = 1) -> Tensor:
    """Return images ``(n, channels, size, size)`` float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, channels, size, size), generator=generator)


def labels(n: int, *, classes: int = CLASSES) -> Tensor:
    """Return labels ``(n,)`` int64 that go round the classes."""
    return torch.arange(n) % classes


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the largest value: layers differ in scale."""
    return float((one - other).abs().max() / other.abs().max())


def initialised(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and statistic a value drawn from `seed` and return `module` in eval.

    Weights are scaled by their fan-in, norms vary around one, biases, means and variances differ
    from channel to channel: nothing is at a default that would hide an edit.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(normal(parameter) * (2 / parameter[0].numel()) ** 0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.2 * normal(parameter))
            else:
                parameter.copy_(0.2 * normal(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    return module.eval()


class ConvNet(nn.Module):
    """Two convolutions, each with an optional norm, 2x2 average pooling, a linear head."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] | None,
        *,
        channels: int = 3,
        width: int = 8,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm1 = nn.Identity() if norm is None else norm(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm2 = nn.Identity() if norm is None else norm(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(8 * width, classes)

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature maps, before pooling."""
        x = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        out: Tensor = self.head(self.pool(self.maps(x)).flatten(1))
        return out


class TupleNet(ConvNet):
    """Returns its logits with its feature maps, as nets with auxiliary outputs do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # on purpose
        """Map images to logits and maps."""
        maps = self.maps(x)
        return self.head(self.pool(maps).flatten(1)), maps


class UntraceableNet(ConvNet):
    """Looks at its values to choose its way, which no symbolic trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        if float(x.detach().sum()) != float(x.detach().sum()):
            return super().forward(torch.zeros_like(x))
        return super().forward(x)


class Fuse:
    """Raises an error in mid-forward once the passes that it was armed with are used up."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.error: BaseException = RuntimeError("not armed")

    def arm(self, calls: int, error: BaseException) -> None:
        """Let `calls` more passes through, then raise `error` in each."""
        self.left, self.error = calls, error

    def __call__(self, _module: nn.Module, _inputs: object) -> None:
        if self.left is None:
            return
        if self.left == 0:
            raise self.error
        self.left -= 1


class RaisingNet(ConvNet):
    """Has a `fuse` between its layers: a hook, so that it burns in a traced copy too."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d)
        self.fuse = Fuse()
        self.act = nn.ReLU()
        self.act.register_forward_pre_hook(self.fuse)

    def maps(self, x: Tensor) -> Tensor:
        """Return the last feature maps, unless the fuse burns before the second layer."""
        x = self.act(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(x)))


class DenseNet(nn.Module):
    """BatchNorm before convolution, and concatenation: a norm's input is rarely one convolution."""

    def __init__(self, *, width: int = 4, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.stem(x)
        one = torch.cat([x, self.conv1(torch.relu(self.norm1(x)))], dim=1)
        inner = self.norm3(self.conv2(torch.relu(self.norm2(one))))
        two = torch.cat([one, inner], dim=1)
        maps = torch.relu(self.norm4(two))
        out: Tensor = self.head(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return out


class TokenNet(nn.Module):
    """Patches as tokens: LayerNorm and linear layers whose neurons are the last dimension."""

    def __init__(self, *, width: int = 6, classes: int = CLASSES) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norm1 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens + torch.relu(self.hidden(self.norm1(tokens)))
        out: Tensor = self.head(self.norm2(tokens).mean(1))
        return out


class LogitsNet(nn.Module):
    """Ends in arithmetic instead of a linear layer, so that there is no head to cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2 * CLASSES, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        maps = self.norm(self.conv(x)).mean((2, 3))
        return maps[:, :CLASSES] - maps[:, CLASSES:]


def tiny_resnet(seed: int = 0, *, width: int = 4, channels: int = 3) -> nn.Module:
    """Return a ResNet-18 of the project's own family: 20 BatchNorm layers."""
    net = CifarResNet(depth=18, width=width, num_classes=CLASSES, in_channels=channels)
    return initialised(net, seed)


def tiny_bn(
    seed: int = 0, *, channels: int = 3, width: int = 8, classes: int = CLASSES
) -> nn.Module:
    """Return the quickest net with BatchNorm: two layers."""
    net = ConvNet(nn.BatchNorm2d, channels=channels, width=width, classes=classes)
    return initialised(net, seed)


def tiny_grey(seed: int = 0) -> nn.Module:
    """Return a net with one input channel."""
    return tiny_bn(seed, channels=1)


def tiny_plain(seed: int = 0, *, classes: int = CLASSES) -> nn.Module:
    """Return a net without any norm."""
    return initialised(ConvNet(None, classes=classes), seed)


def tiny_groupnorm(seed: int = 0) -> nn.Module:
    """Return a net with GroupNorm."""
    return initialised(ConvNet(lambda width: nn.GroupNorm(2, width)), seed)


def tiny_batch_statistics(seed: int = 0) -> nn.Module:
    """Return a net whose BatchNorm keeps no running statistics."""

    def norm(width: int) -> nn.Module:
        return nn.BatchNorm2d(width, track_running_stats=False)

    return initialised(ConvNet(norm), seed)


def tiny_densenet(seed: int = 0) -> nn.Module:
    """Return a net with BatchNorm before convolution."""
    return initialised(DenseNet(), seed)


def tiny_tokens(seed: int = 0) -> nn.Module:
    """Return a net with LayerNorm."""
    return initialised(TokenNet(), seed)


def tiny_tuple(seed: int = 0) -> nn.Module:
    """Return a net whose output is a tuple with the logits first."""
    return initialised(TupleNet(nn.BatchNorm2d), seed)


def tiny_untraceable(seed: int = 0) -> nn.Module:
    """Return a net that ``torch.fx`` cannot trace."""
    return initialised(UntraceableNet(nn.BatchNorm2d), seed)


def tiny_without_split(seed: int = 0) -> nn.Module:
    """Return a net without a classifier layer."""
    return initialised(LogitsNet(), seed)


def tiny_raising(seed: int = 0) -> RaisingNet:
    """Return a net whose ``fuse.arm(calls, error)`` makes it raise in mid-forward."""
    net = RaisingNet()
    initialised(net, seed)
    return net


def suspect_of(
    module: nn.Module,
    *,
    channels: int = 3,
    size: int = SIZE,
    classes: int = CLASSES,
    preprocessing: Preprocessing = HALF,
) -> Suspect:
    """Return the suspect that borrows `module`."""
    return Suspect(
        module,
        preprocessing=preprocessing,
        input_size=size,
        input_channels=channels,
        num_classes=classes,
    )


def scaled(suspect: Suspect, name: str, amount: float) -> SiteEdit:
    """Return the same noise `amount` on weight and bias of every channel of one site."""
    site = next(site for site in suspect.sites if site.name == name)
    noise = torch.full((site.channels,), amount)
    return SiteEdit(weight_noise=noise, bias_noise=noise)


#: One of every kind that edits have to reach.
BUILDS: dict[str, Callable[[], nn.Module]] = {
    "resnet": tiny_resnet,
    "bn": tiny_bn,
    "densenet": tiny_densenet,
    "plain": tiny_plain,
    "groupnorm": tiny_groupnorm,
    "tokens": tiny_tokens,
    "untraceable": tiny_untraceable,
}
