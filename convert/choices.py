"""What the converter's options can be; importing them is cheap."""

DTYPES = ("keep", "float32", "float16", "bfloat16")
WEIGHTS = (
    "keep",
    "nvfp4",
    *(f"uniform{bits}" for bits in range(2, 9)),
    *(f"residual{bits}" for bits in range(2, 5)),
)
ROTATIONS = (0, 128)
DIALECTS = (
    "auto",
    "modelopt",
    "modelopt-swizzled",
    "comfyui",
    "lightx2v",
    "bfl",
    "compressed-tensors",
    "torchao",
)
"""Layouts of packed NVFP4 weights that are read (`nvfp4_dialects.CHOICES`)."""
WRITTEN = ("modelopt", "torchao")
"""Dialects of packed weights that are written; the second name is the first one's."""
