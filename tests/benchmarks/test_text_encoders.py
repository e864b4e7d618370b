"""The errors of embeddings on a very small encoder."""

import numpy as np
import pytest

from benchmarks import text_encoders
from sixbit_jax.text_encoders.t5_config import T5Config

SMALL = T5Config(vocab_size=50, d_model=128, num_heads=2, d_ff=128, num_layers=2)


@pytest.mark.slow
def test_fewer_bits_are_worse_for_every_encoder_and_distribution():
    rows = text_encoders.measure(SMALL, tokens=12)
    assert len(rows) == 2 * 2 * (2 * len(text_encoders.FORMATS) - 1)
    for encoder in ("T5EncoderModel", "UMT5EncoderModel"):
        for weights in ("gaussian", "heavy-tailed"):
            error = {
                row["format"]: row["relative_l2"]
                for row in rows
                if (row["encoder"], row["weights"]) == (encoder, weights)
                and row["compute"] == "bfloat16"
            }
            assert 0 < error["bfloat16"] < error["int8"] < error["nvfp4"]
    bits = {row["format"]: row["bits_per_weight"] for row in rows}
    assert bits["bfloat16"] == 16
    assert bits["nvfp4"] == pytest.approx(4.5, abs=0.01)
    assert np.isfinite([row["worst_row"] for row in rows]).all()
    assert "| T5EncoderModel | gaussian | bfloat16" in text_encoders.markdown(rows)


def test_the_residual_stream_is_as_large_as_the_published_models():
    from flax import nnx

    from sixbit_jax.text_encoders.t5 import T5Encoder

    model = text_encoders.random_encoder(T5Encoder, SMALL, heavy=False)
    seen = []
    norm = model.final_layer_norm
    model.final_layer_norm = lambda x: (seen.append(x), norm(x))[1]
    model(np.arange(3, 15)[None])
    assert isinstance(norm, nnx.Module)
    assert 3e4 < float(abs(seen[0]).max()) < 3e6
