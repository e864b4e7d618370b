"""One LoRA file with the updates of both networks of a pair."""

import json

import pytest

import sixbit_jax
from convert import ConversionError, convert, convert_pair
from convert.fuse import fuse_lora
from tests.convert.checkpoints import write_checkpoint
from tests.convert.lora_files import low_rank, write
from tests.convert.test_lora import WAN, WAN_KEYS, check
from tests.golden import wan_cases

CASE = wan_cases.load(WAN)
WEIGHTS = CASE.weights()
# Of different modules, so that neither half fits in the place of the other.
HALVES = (WAN_KEYS[:3], WAN_KEYS[2:6])


def _both(file, *, alpha=None):
    """The file, and what each network gains."""
    tensors, gains = {}, []
    for number, (keys, folder) in enumerate(
        zip(HALVES, ("transformer", "transformer_2"), strict=True)
    ):
        made, gain = low_rank(WEIGHTS, keys, "diffusers", seed=number)
        for name, value in made.items():
            tensors[name.replace("transformer", folder, 1)] = value
        gains.append(gain)
    notes = {}
    if alpha is not None:
        fields = {"transformer.lora_alpha": alpha[0]}
        fields["transformer_2.lora_alpha"] = alpha[1]
        notes["lora_adapter_metadata"] = json.dumps(fields)
        for keys, gain, value in zip(HALVES, gains, alpha, strict=True):
            for number, key in enumerate(keys):
                gain[key] = gain[key] * value / (2 + number % 3)
    return write(file, tensors, **notes), gains


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    for name in ("transformer", "transformer_2"):
        write_checkpoint(folder / name, CASE.config, WEIGHTS)
    return folder


@pytest.mark.parametrize("chosen", ["", "high=", "low="])
@pytest.mark.parametrize("alpha", [None, (3.0, 0.5)])
def test_each_network_gets_its_half(tmp_path, root, chosen, alpha):
    file, (high, low) = _both(tmp_path / "lora.safetensors", alpha=alpha)
    convert_pair(root, tmp_path / "out", lora=[f"{chosen}{file}:0.5"])
    for name, gains in (("high", high), ("low", low)):
        if chosen in ("", f"{name}="):
            check(tmp_path / "out" / f"{name}_noise", WEIGHTS, gains, 0.5)
        else:
            check(tmp_path / "out" / f"{name}_noise", WEIGHTS, {})


def test_for_one_network_the_half_must_be_named(tmp_path, root):
    file, (_, low) = _both(tmp_path / "lora.safetensors")
    with pytest.raises(ConversionError, match="keys of both networks of a pair"):
        convert(root / "transformer", tmp_path / "no", lora=[file])
    convert(root / "transformer", tmp_path / "plain")
    model, _ = sixbit_jax.load(tmp_path / "plain")
    with pytest.raises(ConversionError, match="keys of both networks of a pair"):
        fuse_lora(model, file)
    sixbit_jax.save(fuse_lora(model, f"low={file}", 0.5), tmp_path / "low")
    check(tmp_path / "low", WEIGHTS, low, 0.5)


def test_a_half_that_is_not_there_is_named(tmp_path, root):
    tensors, _ = low_rank(WEIGHTS, HALVES[0], "diffusers")
    second = {k.replace("former.", "former_2.", 1): v for k, v in tensors.items()}
    file = write(tmp_path / "lora.safetensors", second)
    with pytest.raises(ConversionError, match="for high noise, found those of the oth"):
        convert_pair(root, tmp_path / "out", lora=[file])
    assert not (tmp_path / "out").exists()


def test_wrappers_inside_of_names_are_left_out(tmp_path, root):
    tensors, gains = low_rank(WEIGHTS, HALVES[0], "peft")
    wrapped = {
        k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in tensors.items()
    }
    assert wrapped.keys() != tensors.keys()
    file = write(tmp_path / "lora.safetensors", wrapped)
    convert(root / "transformer", tmp_path / "out", lora=[file])
    check(tmp_path / "out", WEIGHTS, gains)
