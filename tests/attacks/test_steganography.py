from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.steganography import Decoder, Encoder, draw_weights, measure_hiding

SHAPE = (3, 12, 8)


def networks(*, bound: float = 0.1) -> tuple[Encoder, Decoder]:
    encoder = Encoder(shape=SHAPE, bits=5, widths=(4, 6, 8), bound=bound)
    decoder = Decoder(shape=SHAPE, bits=5, widths=(4, 6, 8))
    for network in (encoder, decoder):
        draw_weights(network, generator=torch.Generator().manual_seed(0))
    return encoder, decoder


def test_networks_keep_their_shapes() -> None:
    encoder, decoder = networks()
    images, bits = torch.rand(2, *SHAPE, generator=torch.Generator()), torch.ones(2, 5)
    assert encoder(images, bits).shape == images.shape
    assert decoder(images).shape == (2, 5)


def test_weights_follow_the_generator_alone() -> None:
    one, two = (networks()[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


class Reader(Decoder):
    """Reads bit i as whether pixel i of the first row is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :5] - 0.5


class Writer(Encoder):
    """Writes the bits where `Reader` reads them, the last one wrongly."""

    def forward(self, images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        residuals = torch.zeros_like(images)
        residuals[:, 0, 0, :4] = (bits[:, :4] - 0.5) * 0.2
        residuals[:, 0, 0, 4] = (0.5 - bits[:, 4]) * 0.2
        return residuals


def test_quality_counts_bits_and_mean_change() -> None:
    _, decoder = networks()
    writer = Writer(shape=SHAPE, bits=5, widths=(4, 6, 8), bound=1.0)
    reader = Reader(shape=SHAPE, bits=5, widths=(4, 6, 8))
    assert decoder.last.out_features == 5
    images = torch.full((6, *SHAPE), 128, dtype=torch.uint8)
    quality = measure_hiding(
        writer, reader, images, generator=torch.Generator().manual_seed(0), batch_size=4
    )
    assert quality.bit_accuracy == pytest.approx(0.8)
    # Five pixels of 288 change by 0.1, which is 25 or 26 steps of 1/255.
    assert quality.mean_residual == pytest.approx(0.1 * 5 / 288, rel=0.03)
