"""Tiny converted pipelines, made once."""

import pytest

from convert.root import convert_root
from tests.golden.pipeline_cases import CASES, write_root


@pytest.fixture(scope="session")
def wan(tmp_path_factory):
    """(root, pipeline directory) of a tiny Wan 2.1 with quantized weights."""
    folder = tmp_path_factory.mktemp("wan")
    root = write_root(CASES["wan_2_1"], folder)
    convert_root(root, folder / "converted", weights="nvfp4")
    return root, folder / "converted"
