from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from modelaudit.bench.pictures import save_png

if TYPE_CHECKING:
    from pathlib import Path


def test_a_png_holds_the_sheet_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    sheet = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    save_png(sheet, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), sheet)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]
