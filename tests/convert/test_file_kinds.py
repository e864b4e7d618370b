"""Every kind of file is converted to what it stands for, or refused by its name."""

import re
from pathlib import Path

import numpy as np
import pytest

import convert
from convert import ConversionError
from tests.convert.checkpoints import converted
from tests.convert.file_kinds import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "files-that-are-read.md"
READ = [name for name, kind in KINDS.items() if not kind.refused]
REFUSED = [name for name, kind in KINDS.items() if kind.refused]


def _arguments(source):
    return dict(source) if isinstance(source, dict) else {"source": source}


@pytest.mark.parametrize("name", READ)
def test_it_is_the_network_that_the_file_stands_for(tmp_path, name):
    source, expected = KINDS[name].write(tmp_path)
    convert.convert(**_arguments(source), destination=tmp_path / "out")
    found = converted(tmp_path / "out")
    assert found.keys() == expected.keys()
    for key, value in found.items():
        wanted = expected[key].astype(np.float64)
        np.testing.assert_allclose(
            value.astype(np.float64), wanted, rtol=2e-5, atol=1e-6, err_msg=key
        )


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_its_name(tmp_path, name):
    source, _ = KINDS[name].write(tmp_path)
    with pytest.raises(ConversionError) as caught:
        convert.convert(**_arguments(source), destination=tmp_path / "out")
    message = str(caught.value)
    assert KINDS[name].refused in message
    assert len(message) < 2000
    assert "damaged" not in message.replace("is not damaged", "")
    assert not (tmp_path / "out").exists()


def test_the_page_has_the_same_rows():
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and not re.fullmatch(r"-*|kind", cells[0]):
            rows[cells[0]] = cells[3]
    assert rows.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        assert rows[name].startswith("refused") == bool(kind.refused), name
