from __future__ import annotations

import pytest

from modelaudit.bench.grid import expand
from modelaudit.errors import ConfigError


def ids(grid: dict[str, object], **defaults: object) -> list[object]:
    return [table["id"] for table in expand(grid, defaults)]


def test_every_combination_becomes_a_model_seeds_slowest_targets_fastest() -> None:
    grid = {"attacks": ["clean", "badnets"], "seeds": [1, 2], "targets": [3, 4]}
    assert ids(grid, architecture="cifar_resnet18") == [
        "clean_resnet18w16_s1",
        "badnets_resnet18w16_s1_t3",
        "badnets_resnet18w16_s1_t4",
        "clean_resnet18w16_s2",
        "badnets_resnet18w16_s2_t3",
        "badnets_resnet18w16_s2_t4",
    ]


def test_pairs_of_seed_and_target_are_no_product() -> None:
    grid = {"attacks": ["blend"], "seed_targets": [[1, 3], [2, 4]]}
    assert ids(grid) == ["blend_resnet18w16_s1_t3", "blend_resnet18w16_s2_t4"]


def test_ids_name_data_label_map_and_width() -> None:
    grid = {
        "attacks": ["wanet"],
        "seeds": [5],
        "datasets": ["cifar10", "gtsrb"],
        "architectures": ["cifar_vgg16"],
        "width": 8,
        "config": {"label_map": "all"},
    }
    assert ids(grid) == ["wanet_all_vgg16w8_s5", "wanet_all_gtsrb_vgg16w8_s5"]


def test_models_take_the_grids_fields_and_the_target() -> None:
    grid = {
        "attacks": ["clean", "clb"],
        "seed_targets": [[1, 2]],
        "epochs": 3,
        "surrogate": "x",
        "config": {"rate": 0.5},
    }
    clean, attacked = expand(grid, {})
    assert clean == {"id": "clean_resnet18w16_s1", "seed": 1, "epochs": 3}
    assert attacked == {
        "id": "clb_resnet18w16_s1_t2",
        "seed": 1,
        "epochs": 3,
        "surrogate": "x",
        "attack": "clb",
        "config": {"rate": 0.5, "target": 2},
    }


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"attacks": ["clean"]}, "needs a list 'seeds'"),
        ({"seeds": [1]}, "needs a list 'attacks'"),
        ({"seeds": [], "attacks": ["clean"]}, "needs a list 'seeds'"),
        ({"seeds": 3, "attacks": ["clean"]}, "needs a list 'seeds'"),
        ({"seeds": [1], "attacks": ["clean"], "id": "a"}, "makes ids by itself"),
        ({"seeds": [1], "seed_targets": [[1, 2]], "attacks": ["blend"]}, "not both"),
        ({"seed_targets": [1], "attacks": ["blend"]}, "must be pairs"),
        ({"seeds": [1], "attacks": ["blend"], "config": 3}, "config must be a table"),
    ],
)
def test_grid_that_cannot_be_used_raises(grid: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(grid, {})
