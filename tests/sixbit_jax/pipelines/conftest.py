"""Tiny converted pipelines, made once."""

import pytest

from convert.root import convert_root
from tests.golden.image_pipeline_cases import IMAGE_CASES
from tests.golden.pipeline_cases import CASES, write_root


@pytest.fixture(scope="session")
def wan(tmp_path_factory):
    """(root, pipeline directory) of a tiny Wan 2.1 with quantized weights."""
    folder = tmp_path_factory.mktemp("wan")
    root = write_root(CASES["wan_2_1"], folder)
    convert_root(root, folder / "converted", weights="nvfp4")
    return root, folder / "converted"


@pytest.fixture(scope="session")
def wan_i2v(tmp_path_factory):
    """(root, pipeline directory) of a tiny Wan 2.1 I2V with quantized weights."""
    folder = tmp_path_factory.mktemp("wan_i2v")
    root = write_root(IMAGE_CASES["wan_2_1_i2v"], folder)
    convert_root(root, folder / "converted", weights="nvfp4")
    return root, folder / "converted"
