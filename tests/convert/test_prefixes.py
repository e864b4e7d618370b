"""Whatever wrapped a network when it was saved, its own names are read."""

import json

import numpy as np
import pytest

from convert import convert
from convert.errors import ConversionError
from convert.original_wan import config_of
from convert.prefixes import strip_prefixes
from convert.reader import open_source
from convert.safetensors_file import write_file
from tests.convert.checkpoints import golden
from tests.convert.packed_files import pack_checkpoint
from tests.convert.torch_files import write_state_dict
from tests.golden import wan_cases

WAN = "t2v_128_f2_8x6_t7_rows"
PREFIXES = (
    "model.",
    "diffusion_model.",
    "model.diffusion_model.",
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "pipe.dit.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.diffusion_model.",
    "transformer.",
    "dit.",
)
LAYOUTS = ("cogvideox", "wan", "original wan", "packed", "pth")


def _files(layout):
    """Tensors and config.json of a layout."""
    if layout in ("cogvideox", "pth"):
        case = golden()
        return case.weights(), case.config
    case = wan_cases.load(WAN)
    if layout == "packed":
        return pack_checkpoint(case.weights(), "comfyui")[0], case.config
    if layout == "wan":
        return case.weights(), case.config
    names = json.loads((wan_cases.FOLDER / "original_names.json").read_text())
    back = {theirs: original for original, theirs in names.items()}
    weights = {}
    for key, value in case.weights().items():
        parts = key.split(".")
        number = parts[1] if parts[0] == "blocks" else None
        if number is not None:
            key = ".".join(["blocks", "0", *parts[2:]])
        name = back[key]
        if number is not None:
            name = name.replace("blocks.0.", f"blocks.{number}.", 1)
        weights[name] = value
    return weights, None


def _write(folder, layout, prefix):
    weights, config = _files(layout)
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    named = {prefix + name: value for name, value in weights.items()}
    if layout == "pth":
        write_state_dict(folder / "model.pth", named)
    else:
        write_file(folder / "model.safetensors", named)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_changes_nothing(tmp_path, layout, prefix):
    plain = open_source(_write(tmp_path / "plain", layout, ""))
    found = open_source(_write(tmp_path / "found", layout, prefix))
    assert found.config == plain.config
    assert found.tensors.keys() == plain.tensors.keys()
    for name, info in plain.tensors.items():
        assert found.tensors[name].shape == info.shape
    name = next(iter(plain.tensors))
    np.testing.assert_array_equal(
        found.tensors[name].read(), plain.tensors[name].read()
    )


def test_what_is_read_behind_a_prefix_is_converted(tmp_path):
    for name, prefix in (("plain", ""), ("found", "pipe.dit.")):
        source = _write(tmp_path / name, "original wan", prefix)
        report = convert(source, tmp_path / f"ours-{name}")
        assert report.keys_read == len(_files("original wan")[0])


def test_wrappers_of_modules_within_are_removed():
    key = (
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module."
        "_checkpoint_wrapped_module.attn1._orig_mod.to_q.weight"
    )
    assert list(strip_prefixes({key: None})) == ["blocks.0.attn1.to_q.weight"]


def test_only_whole_words_at_the_beginning_are_prefixes():
    keys = ["supermodel.a", "a.model.b", "modules.a", "a.my_orig_mod.b", "model"]
    assert list(strip_prefixes(dict.fromkeys(keys))) == keys


def test_two_networks_in_one_file_are_refused():
    keys = dict.fromkeys(["model.a", "b", "module.a"])
    with pytest.raises(ConversionError, match=r"model\.a and module\.a: both are a"):
        strip_prefixes(keys)


def test_an_original_wan_without_its_blocks_is_named():
    with pytest.raises(ConversionError, match="incomplete"):
        config_of({})
