"""CLIP's preprocessing against transformers' image processor."""

import numpy as np
import pytest
from PIL import Image

from sixbit_jax.text_encoders.clip_pixels import CLIPPixelsConfig, clip_pixels
from tests.golden.picture_cases import FILE, PICTURES, PROCESSOR, picture


@pytest.mark.parametrize("index", range(len(PICTURES)))
def test_pixels_equal_transformers(index):
    expected = np.load(FILE)[index]
    found = clip_pixels(
        picture(*PICTURES[index]), CLIPPixelsConfig.from_dict(PROCESSOR)
    )
    assert found.dtype == np.float32
    assert found.shape == (3, 23, 20)
    # 1e-5 of the pixel range, which the smallest deviation stretches.
    assert np.abs(found - expected).max() < 1e-5 / 0.26


def test_published_processor_gives_224_square():
    config = CLIPPixelsConfig.from_dict(
        {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "CLIPImageProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 224},
        }
    )
    assert config == CLIPPixelsConfig()
    white = clip_pixels(Image.new("RGB", (300, 250), "white"), config)
    assert white.shape == (3, 224, 224)
    expected = (1 - np.array(config.image_mean)) / np.array(config.image_std)
    assert np.allclose(white, expected[:, None, None], atol=1e-6)


def test_processor_of_another_kind_is_refused_with_everything_named():
    with pytest.raises(ValueError) as error:
        CLIPPixelsConfig.from_dict(
            {"do_center_crop": False, "size": {"height": 384}, "patch_size": 14}
        )
    message = str(error.value)
    assert "do_center_crop: expected true, found False" in message
    assert "size: expected a shortest_edge, found {'height': 384}" in message
    assert "patch_size: not a key of a CLIP image processor" in message
    with pytest.raises(ValueError, match="crop_size: expected 1 to shortest_edge 20"):
        CLIPPixelsConfig(shortest_edge=20)
