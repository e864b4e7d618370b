"""Defaults come from the network; what does not fit it is refused by name."""

import argparse

import pytest

from sixbit_jax.checkpoint.header import Header
from sixbit_jax.commands._names import SCHEDULERS
from sixbit_jax.commands._networks import Network
from sixbit_jax.commands._settings import settings_for
from sixbit_jax.sampling.schedulers import CogVideoXDPM, FlowMatchEuler, UniPC
from sixbit_jax.sampling.schedulers.choice import NAMES
from tests.sixbit_jax.commands.networks import KINDS


def network(kind: str, scheduler=None) -> Network:
    model = KINDS[kind].make(0)
    header = Header(
        model_class=type(model).class_name,
        config={},
        parameters={},
        stacks={},
        scheduler=scheduler,
    )
    return Network(model, None, header)


def options(**changes) -> argparse.Namespace:
    names = ("steps", "guidance", "scheduler", "shift", "sigmas", "timesteps")
    values = dict.fromkeys(names)
    return argparse.Namespace(**(values | changes))


def test_the_command_line_offers_the_schedulers_there_are():
    assert tuple(NAMES) == SCHEDULERS


@pytest.mark.parametrize(
    ("kind", "scale", "shape", "shift"),
    [
        ("cogvideox-5b", 6.0, (3, 4, 8, 8), None),
        ("wan2.1-t2v", 5.0, (21, 4, 60, 104), 3.0),
        ("wan2.2-ti2v", 5.0, (31, 48, 44, 80), 5.0),
    ],
)
def test_defaults_are_those_of_the_network(kind, scale, shape, shift, capsys):
    found = settings_for(options(), network(kind))
    assert (found.num_steps, found.scale, found.latent_shape) == (50, scale, shape)
    error = capsys.readouterr().err
    assert "no scheduler: taking the published" in error
    assert type(found.scheduler).class_name in error
    if shift is not None:
        assert isinstance(found.scheduler, UniPC)
        assert found.scheduler.flow_shift == shift


def test_the_published_shift_depends_on_the_size(capsys):
    large = settings_for(options(), network("wan2.1-t2v"), size=(1, 90, 160))
    assert large.scheduler.flow_shift == 5.0
    asked = settings_for(options(shift=7.5), network("wan2.1-t2v"), size=(1, 90, 160))
    assert asked.scheduler.flow_shift == 7.5


def test_what_is_asked_for_wins(capsys):
    asked = options(steps=4, guidance=0.5, scheduler="euler", shift=2.0)
    found = settings_for(asked, network("wan2.1-t2v"), size=(3, 4, None))
    assert isinstance(found.scheduler, FlowMatchEuler)
    assert found.scheduler.shift == 2.0
    assert (found.num_steps, found.guided) == (4, False)
    assert found.latent_shape == (3, 4, 4, 104)
    # Named by the user: there is nothing to say.
    assert capsys.readouterr().err == ""
    found = settings_for(options(scheduler="dpm"), network("cogvideox-5b"))
    assert isinstance(found.scheduler, CogVideoXDPM)


@pytest.mark.parametrize(
    ("kind", "asked", "size", "messages"),
    [
        ("wan2.1-t2v", {"scheduler": "ddim"}, (3, 4, 4), ["unipc, euler", "'ddim'"]),
        ("cogvideox-5b", {"scheduler": "unipc"}, (3, 4, 4), ["ddim, dpm", "'unipc'"]),
        ("cogvideox-5b", {"shift": 3.0}, (3, 4, 4), ["shift: expected none"]),
        (
            "wan2.1-t2v",
            {"scheduler": "dpm"},
            (3, 5, 4),
            ["latent_shape", "multiples", "unipc, euler"],
        ),
    ],
)
def test_misfits_are_refused_in_one_message(kind, asked, size, messages):
    with pytest.raises(ValueError) as error:
        settings_for(options(**asked), network(kind), size=size)
    for message in messages:
        assert message in str(error.value)


def test_a_scheduler_of_another_prediction_is_refused():
    ddim = {
        "_class_name": "CogVideoXDDIMScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 1.0,
        "timestep_spacing": "trailing",
    }
    with pytest.raises(ValueError, match=r"flow_prediction.*unipc, euler"):
        settings_for(options(), network("wan2.1-t2v", ddim), size=(3, 4, 4))


def test_captions_are_for_networks_of_the_demo():
    with pytest.raises(ValueError, match=r"prompts of width 128.*found width 32 and 4"):
        settings_for(options(), network("wan2.1-t2v"), captions=True)


def test_the_padding_frame_of_cogvideox_1_5_is_not_the_users_matter(capsys):
    found = settings_for(options(), network("cogvideox1.5"), size=(21, 4, 4))
    assert found.latent_shape == (21, 4, 4, 4)
