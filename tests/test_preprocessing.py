from __future__ import annotations

import pytest

from modelaudit.errors import ConfigError
from modelaudit.preprocessing import PRESETS, Preprocessing

COLOUR = Preprocessing(id="c", mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
GREY = Preprocessing(id="g", mean=(0.5,), std=(0.25,))


def test_as_many_channels_leave_it_as_it_is() -> None:
    assert COLOUR.for_channels(3) is COLOUR
    assert GREY.for_channels(1) is GREY


def test_one_value_is_repeated_for_every_channel() -> None:
    assert GREY.for_channels(3) == Preprocessing(
        id="g", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )


def test_a_colour_normalisation_of_a_grey_model_is_the_mean_over_colours() -> None:
    grey = COLOUR.for_channels(1)
    assert grey.id == "c"
    assert grey.mean == pytest.approx((0.3,))
    assert grey.std == pytest.approx((0.3,))


def test_channels_that_do_not_fit_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="the model takes 4 channels, the preprocessing has 3"):
        COLOUR.for_channels(4)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5), "as many means as stds, got 1 and 2"),
        ((), (), "as many means as stds, got 0 and 0"),
        ((0.5,), (0.0,), "std must be positive"),
        ((0.5,), (-1.0,), "std must be positive"),
        ((0.5,), (float("nan"),), "std must be positive"),
    ],
)
def test_values_that_normalise_nothing_are_refused(
    mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(id="x", mean=mean, std=std)


def test_preset_names_are_unique() -> None:
    ids = [preset.id for preset in PRESETS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.id)
def test_every_preset_serves_grey_and_colour_models(preset: Preprocessing) -> None:
    for channels in (1, 3):
        fitted = preset.for_channels(channels)
        assert len(fitted.mean) == len(fitted.std) == channels
        assert fitted.id == preset.id


def test_the_first_preset_leaves_pixels_as_they_are() -> None:
    assert (PRESETS[0].id, set(PRESETS[0].mean), set(PRESETS[0].std)) == ("none", {0.0}, {1.0})


def test_the_constants_of_the_datasets_are_the_published_ones() -> None:
    constants = {p.id: (p.mean, p.std) for p in PRESETS}
    assert constants["imagenet"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert constants["cifar10_0.247"] == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert constants["cifar10_0.2023"] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert constants["half"] == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
