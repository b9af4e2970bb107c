from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from modelaudit.attacks.contact_sheet import contact_sheet
from modelaudit.bench.data import load_pack
from modelaudit.bench.pictures import draw_attacks, draw_population, save_png
from modelaudit.bench.plan import read_plan
from modelaudit.bench.runner import Population
from modelaudit.registry import Registry
from tests.helpers.attacks import write_pack

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PLAN = """
name = "toy"
[defaults]
dataset = "toy"
width = 4
epochs = 1
batch_size = 16
[[model]]
id = "clean"
seed = 1
[[model]]
id = "clean_2"
seed = 2
[[model]]
id = "learned"
seed = 1
attack = "iad"
config.target = 2
config.rate = 0.3
config.widths = [4, 4, 8]
config.mask_epochs = 1
config.mask_images = 16
config.mask_batch_size = 8
[[model]]
id = "perturbed"
seed = 1
attack = "clb"
surrogate = "clean_2"
config = { target = 2, steps = 2 }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pack(folder / "toy_jpeg.npz")
    (folder / "plan.toml").write_text(PLAN)
    assert population(folder).train() == ()
    return folder


def population(folder: Path) -> Population:
    return Population(read_plan(folder / "plan.toml"), folder=folder / "zoo", data_root=folder)


def read(path: Path | None) -> NDArray[np.uint8]:
    assert path is not None
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_png_holds_the_sheet_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    sheet = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    save_png(sheet, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), sheet)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_triggers_that_are_learned_have_no_picture_without_a_model(
    place: Path, tmp_path: Path
) -> None:
    drawn = {d.name: d for d in draw_attacks((), dataset="toy", data_root=place, out=tmp_path)}
    assert set(drawn) == set(Registry("attacks").ids())
    without = {name for name, one in drawn.items() if one.path is None}
    assert without == {"iad", "ssdt", "ssba"}
    assert all("its trigger is learned" in drawn[name].reason for name in without)
    assert {path.stem for path in tmp_path.iterdir()} == set(drawn) - without


def test_triggers_of_training_and_cover_are_shown(place: Path, tmp_path: Path) -> None:
    ids = ("adap_blend", "badnets", "clb", "wanet", "mmd")
    sheets = {}
    for shown in ("test", "training", "cover"):
        drawn = draw_attacks(ids, dataset="toy", data_root=place, out=tmp_path, shown=shown)
        sheets[shown] = {one.name: one for one in drawn}
    assert [one.name for one in sheets["training"].values() if one.path is None] == ["clb"]
    assert sheets["training"]["clb"].reason == (
        "its training images are made in a run; give --plan and --models that trained it"
    )
    covered = {name for name, one in sheets["cover"].items() if one.path is not None}
    assert covered == {"adap_blend", "wanet"}
    assert sheets["cover"]["badnets"].reason == "the attack 'badnets' has no cover images"
    assert sheets["cover"]["wanet"].path == tmp_path / "wanet_cover.png"
    whole, partial = (read(sheets[s]["adap_blend"].path) for s in ("test", "training"))
    # cells of 98 pixels; the third row is grey where a piece of the picture is left out
    assert (whole[198:294, 2:98] == 128).all(-1).mean() < 0.1
    assert 0.4 < (partial[198:294, 2:98] == 128).all(-1).mean() < 0.6


def test_models_are_drawn_as_they_were_trained(place: Path, tmp_path: Path) -> None:
    plan = str(place / "plan.toml")
    drawn = draw_population(plan, models=place / "zoo", data_root=place, out=tmp_path)
    paths = {one.name: one.path for one in drawn}
    assert set(paths) == {"learned", "perturbed"}
    models = population(place)
    data, attack = models.attack(models.plan.model("learned"))
    chosen = data.test_labels.argsort(stable=True).view(4, 2).T.flatten()
    expected = contact_sheet(attack, data.test_images[chosen], indices=chosen)
    assert np.array_equal(read(paths["learned"]), expected)


def test_perturbation_of_clb_is_shown(place: Path, tmp_path: Path) -> None:
    drawn = draw_population(
        str(place / "plan.toml"),
        models=place / "zoo",
        data_root=place,
        out=tmp_path,
        shown="training",
    )
    (sheet,) = (read(one.path) for one in drawn if one.name == "perturbed")
    # all images are of the target class, and changed between the corners (of 9 pixels) too
    colour = int(load_pack(place / "toy_jpeg.npz").train_images[2, 0, 16, 16])
    assert abs(int(sheet[50, 50, 0]) - colour) <= 2
    assert (sheet[198:294, 11:89] != 128).any()


@pytest.mark.parametrize(
    ("is_torn", "reason"),
    [
        (False, "that the card of 'learned' names"),
        (True, "expected the state of a training run at"),
    ],
)
def test_model_without_its_learned_trigger_has_no_picture(
    place: Path, tmp_path: Path, is_torn: bool, reason: str
) -> None:
    state = place / "zoo" / "state" / "learned.safetensors"
    moved = state.rename(state.with_suffix(".moved"))
    if is_torn:
        state.write_bytes(moved.read_bytes()[:1000])
    plan = str(place / "plan.toml")
    drawn = list(draw_population(plan, models=place / "zoo", data_root=place, out=tmp_path))
    moved.rename(state)
    assert [(one.name, one.path is None) for one in drawn] == [
        ("learned", True),
        ("perturbed", False),
    ]
    assert reason in drawn[0].reason
