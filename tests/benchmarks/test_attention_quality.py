"""The comparison of attention precisions on an untrained model."""

import numpy as np
import pytest

from benchmarks.quality import attention as attention_quality
from benchmarks.quality.study import load_model
from sixbit_jax.policies import fixed
from sixbit_jax.routes import Route


@pytest.mark.slow
def test_every_precision_is_measured_against_16_bits():
    captions = [
        "a red circle moves left on a blue background",
        "a yellow triangle grows on a black background",
    ]
    rows = attention_quality.measure(
        load_model("random"), fixed(route=Route.INT8), captions, steps=3
    )
    assert [row["attention"] for row in rows] == [
        attention_quality.SIXTEEN,
        attention_quality.EIGHT,
        attention_quality.STABLE,
    ]
    assert [row["share_int8_scores"] for row in rows[:2]] == [0.0, 1.0]
    assert 0 < rows[2]["share_int8_scores"] < 1
    assert rows[2]["max_gamma"] > 0
    assert rows[0]["difference_db"] == 0
    assert rows[1]["difference_db"] != 0
    assert np.isfinite([row["psnr_db"] for row in rows]).all()
    assert "8-bit in stable blocks" in attention_quality.markdown(rows)
