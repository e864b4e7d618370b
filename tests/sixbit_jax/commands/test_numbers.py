import argparse

import pytest

from sixbit_jax import cli
from sixbit_jax.commands import _numbers

WRONG = [
    ("demo", "--steps=0"),
    ("demo", "--steps=1000000000"),
    ("demo", "--steps=ten"),
    ("demo", "--guidance=nan"),
    ("demo", "--seed=-1"),
    ("demo", f"--seed={2**64}"),
    ("demo", "--shift=nan"),
    ("sample", "--guidance=inf"),
    ("sample", "--guidance-2=nan"),
    ("sample", "--shift=0"),
    ("sample", "--frames=0"),
    ("sample", "--height=-4"),
    ("sample", "--width=1000000000"),
    ("sample", "--steps=1.5"),
    ("compare", "--steps=0"),
    ("calibrate", "--bits=3"),
    ("calibrate", "--bits=9"),
    ("calibrate", "--bits=inf"),
    ("calibrate", "--prompts=0"),
    ("calibrate", "--max-drift=nan"),
    ("calibrate", "--max-drift=1e9"),
    ("calibrate", "--outlier-ratio=-1"),
    ("calibrate", "--outlier-ratio=inf"),
    ("calibrate", "--skips=nan"),
    ("calibrate", "--int8-attention=nan"),
    ("compare", f"--seed={2**64}"),
    ("tune", "--iterations=0"),
    ("tune", "--rate-estimator=inf"),
    ("tune", "--rate-step-sizes=1e30"),
    ("tune", "--tmd-weight=nan"),
    ("tune", "--guidance=nan"),
    ("tune", f"--seed={2**64}"),
    ("tune", "--frames=0"),
    ("tune", "--steps=1000000000"),
]
NEEDED = {
    "demo": [],
    "sample": ["model", "--prompt-embeds=p", "--out=o"],
    "compare": ["full", "w4a4"],
    "calibrate": ["--out=o"],
    "tune": ["--out=o"],
}


@pytest.mark.parametrize(("command", "option"), WRONG)
def test_numbers_out_of_range_are_refused_by_name(command, option, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, *NEEDED[command], option])
    assert stop.value.code == cli.USER_ERROR
    error = capsys.readouterr().err.splitlines()[-1]
    name, word = option.split("=")
    assert error.startswith(f"sixbit {command}: error: argument {name}: expected a ")
    assert error.endswith(f"found {word!r}")


def test_numbers_of_the_range_are_taken():
    assert _numbers.whole(1, 10)("10") == 10
    assert _numbers.whole(1, 10)("1") == 1
    assert _numbers.real(0.0, 1.0)("0.5") == 0.5
    for wrong in ("11", "0", "", "1e3"):
        with pytest.raises(argparse.ArgumentTypeError, match="at most 10"):
            _numbers.whole(1, 10)(wrong)
