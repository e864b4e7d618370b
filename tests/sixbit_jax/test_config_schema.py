"""Every field of every configuration refuses what it does not mean."""

import dataclasses
import math

import numpy as np
import pytest

from sixbit_jax import config_schema
from sixbit_jax.config_schema import ConfigError, Schema
from sixbit_jax.models.cogvideox.config import CogVideoXConfig
from sixbit_jax.models.wan.config import WanConfig
from sixbit_jax.sampling import schedulers
from sixbit_jax.sampling.schedulers import (
    CogVideoXDDIM,
    CogVideoXDPM,
    FlowMatchEuler,
    UniPC,
)

# What diffusers itself writes for published models.
COGVIDEOX = {
    "_class_name": "CogVideoXTransformer3DModel",
    "_diffusers_version": "0.42.1",
    "activation_fn": "gelu-approximate",
    "dropout": 0.0,
    "num_layers": 30,
    "ofs_embed_dim": None,
    "patch_size_t": None,
    "timestep_activation_fn": "silu",
}
WAN = {
    "_class_name": "WanTransformer3DModel",
    "added_kv_proj_dim": None,
    "image_dim": None,
    "patch_size": [1, 2, 2],
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
    "window_size": [-1, -1],
    "add_img_emb": False,
}
COGVIDEOX_SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "sigma_max": None,
    "sigma_min": None,
    "shift_terminal": None,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "time_shift_type": "exponential",
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
EULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 7.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


def _defaults(cls):
    return {
        f.name: list(f.default) if isinstance(f.default, tuple) else f.default
        for f in dataclasses.fields(cls)
    }


# Reader, and a complete valid file.
FILES = {
    "cogvideox": (
        CogVideoXConfig.from_dict,
        {**_defaults(CogVideoXConfig), **COGVIDEOX},
    ),
    "wan": (WanConfig.from_dict, {**_defaults(WanConfig), **WAN}),
    "ddim": (
        schedulers.from_config,
        {"_class_name": "CogVideoXDDIMScheduler", **COGVIDEOX_SCHEDULER},
    ),
    "dpm": (
        schedulers.from_config,
        {"_class_name": "CogVideoXDPMScheduler", **COGVIDEOX_SCHEDULER},
    ),
    "unipc": (schedulers.from_config, UNIPC),
    "euler": (schedulers.from_config, EULER),
}
FIELDS = [
    (name, field)
    for name, (_, values) in FILES.items()
    for field in values
    if not field.startswith("_")
]
# Nothing that any field means.
NEVER = {
    "a number as a string": "30",
    "a word": "false",
    "an empty string": "",
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "a negative number": -3,
    "a huge number": 10**7,
    "a number that no float holds": 10**400,
    "a fraction below zero": -0.5,
    "an object": {"a": 1},
    "a list of objects": [{"a": 1}],
    "a list of bools": [True, True, True],
    "a deep list": [[[[1]]]],
}
CLASSES = (CogVideoXConfig, WanConfig, CogVideoXDDIM, CogVideoXDPM, FlowMatchEuler)


@pytest.mark.parametrize("name", FILES)
def test_what_diffusers_writes_is_accepted(name):
    read, values = FILES[name]
    assert read(values) is not None


@pytest.mark.parametrize("kind", NEVER)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_value_that_no_field_means_is_refused_by_the_fields_name(name, field, kind):
    read, values = FILES[name]
    with pytest.raises(ValueError, match=f"{field}: expected") as error:
        read(values | {field: NEVER[kind]})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_bool_is_no_number_and_a_number_no_bool(name, field):
    read, values = FILES[name]
    kind = type(values[field])
    if kind is bool or field == "add_img_emb":
        wrong = (0, 1, 0.0, 1.0)
    else:
        wrong = (True, False)
    for value in wrong:
        with pytest.raises(ValueError, match=f"{field}: expected"):
            read(values | {field: value})


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_fraction_is_no_whole_number(name, field):
    read, values = FILES[name]
    if type(values[field]) is not int:
        return
    for value in (2.5, float(values[field])):
        with pytest.raises(ValueError, match=f"{field}: expected"):
            read(values | {field: value})


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_none_is_refused_where_a_value_is_needed(name, field):
    read, values = FILES[name]
    allowed = values[field] is None or field in {
        "out_channels",
        "window_size",
        "add_img_emb",
    }
    if allowed and not (name == "cogvideox" and field == "out_channels"):
        read(values | {field: None})
    else:
        with pytest.raises(ValueError, match=f"{field}: expected"):
            read(values | {field: None})


@pytest.mark.parametrize("name", FILES)
def test_unknown_fields_and_wrong_values_are_in_one_message(name):
    read, values = FILES[name]
    fields = [field for field in values if not field.startswith("_")]
    wrong = dict.fromkeys(fields, "wrong") | {"wings": 2, "fins": None}
    with pytest.raises(ConfigError) as error:
        read(values | wrong)
    for field in (*fields, "wings", "fins"):
        assert field in str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("found", [None, [], "a", 3, True])
def test_a_file_that_is_no_object_is_refused(name, found):
    read, _ = FILES[name]
    with pytest.raises(ValueError, match="expected a JSON object, found a"):
        read(found)


@pytest.mark.parametrize("found", [[], {}, 3, None, "x" * 10**6])
def test_a_class_name_of_another_type_is_refused(found):
    with pytest.raises(ValueError, match="expected _class_name") as error:
        schedulers.from_config({"_class_name": found})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("cls", [*CLASSES, UniPC])
def test_the_constructor_refuses_what_the_file_may_not_hold(cls):
    for field in dataclasses.fields(cls):
        with pytest.raises(ValueError, match=f"{field.name}: expected"):
            cls(**{field.name: "wrong"})
        with pytest.raises(ValueError, match=f"{field.name}: expected"):
            cls(**{field.name: math.nan})


def test_numbers_of_numpy_are_kept_as_those_of_python():
    config = WanConfig(num_layers=np.int64(3), eps=np.float32(0.5))
    assert (type(config.num_layers), type(config.eps)) == (int, float)
    assert config == WanConfig(num_layers=3, eps=0.5)


def test_a_whole_number_stands_for_a_float():
    scheduler = UniPC(flow_shift=5)
    assert type(scheduler.flow_shift) is float
    assert scheduler == UniPC(flow_shift=5.0)


def test_schedules_whose_coefficients_would_not_be_finite_are_refused():
    for changes in (
        {"beta_start": 0.9, "beta_end": 0.9},
        {"beta_start": 1e-30, "beta_end": 1e-30},
    ):
        with pytest.raises(ValueError, match="cumulative alphas"):
            CogVideoXDDIM(**changes)


def test_sizes_whose_products_are_absurd_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads x attention_head_dim"):
        CogVideoXConfig(num_attention_heads=1024, attention_head_dim=1024)
    with pytest.raises(ValueError, match="learned positions"):
        CogVideoXConfig(
            use_learned_positional_embeddings=True,
            use_rotary_positional_embeddings=True,
            sample_height=8192,
            sample_width=8192,
        )
    with pytest.raises(ValueError, match="at least patch_size 64"):
        CogVideoXConfig(patch_size=64)


def test_a_message_stays_short_however_long_the_value():
    schema = Schema("thing", {"a": config_schema.boolean()})
    for value in ("x" * 10**7, list(range(10**5)), 10**5000, {"k": "v" * 10**6}):
        with pytest.raises(ConfigError) as error:
            schema.check(_Holder(value))
        assert len(str(error.value)) < 300
    with pytest.raises(ConfigError) as error:
        schema.read({f"{i}" * 100: 1 for i in range(1000)}, dict)
    assert len(str(error.value)) < 5000
    assert "and 980 more" in str(error.value)


@dataclasses.dataclass
class _Holder:
    a: object
