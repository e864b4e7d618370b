import argparse
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import convert
from convert.command import main
from sixbit_jax import NVFP4Recipe, checkpoint, quantize
from tests.convert.checkpoints import golden, write_golden


def test_converting_and_the_way_back(tmp_path, capsys):
    source = write_golden(tmp_path / "src", golden())
    ours, back = str(tmp_path / "ours"), str(tmp_path / "back")
    assert main([str(source), ours, "--weights", "nvfp4", "--dtype", "bfloat16"]) == 0
    assert "20 now quantized" in capsys.readouterr().out
    assert checkpoint.read_header(ours).quantization["weights"] == "nvfp4"
    assert main([ours, back, "--to-diffusers"]) == 0
    assert (tmp_path / "back" / "config.json").is_file()


def test_refined_weights_are_those_of_the_recipe_in_memory(tmp_path):
    case = golden()
    source = str(write_golden(tmp_path / "src", case))
    kept, ours = str(tmp_path / "kept"), str(tmp_path / "ours")
    assert main([source, kept]) == 0
    assert main([source, ours, "--weights", "nvfp4", "--refine"]) == 0
    assert checkpoint.read_header(ours).quantization["method"] == "grid refinement"
    model, _ = checkpoint.load(kept)
    expected = nnx.state(quantize(model, NVFP4Recipe(refine=True)))
    found = nnx.state(checkpoint.load(ours)[0])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_refinement_without_quantized_weights_is_refused(tmp_path, capsys):
    source = str(write_golden(tmp_path / "src", golden()))
    assert main([source, str(tmp_path / "out"), "--refine"]) == 1
    assert "found --weights keep" in capsys.readouterr().err
    assert main([source, str(tmp_path / "out"), "--to-diffusers", "--refine"]) == 1
    assert "no --refine" in capsys.readouterr().err
    with pytest.raises(ValueError, match="refine: expected quantized weights"):
        convert.convert(source, tmp_path / "out", refine=True)
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_message_and_status_1(tmp_path, capsys):
    assert main([str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: source: expected a checkpoint")
    assert captured.out == ""
    options = ["--to-diffusers", "--weights", "nvfp4"]
    assert main([str(tmp_path), str(tmp_path / "out"), *options]) == 1
    assert "expected no --weights" in capsys.readouterr().err


def test_another_parser_can_reuse_the_arguments(tmp_path):
    parser = argparse.ArgumentParser()
    convert.cli_arguments(parser.add_subparsers().add_parser("convert"))
    args = parser.parse_args(["convert", str(tmp_path), str(tmp_path / "x")])
    assert convert.run(args) == 1


def test_an_unknown_value_of_an_option_ends_with_usage(tmp_path):
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "x"), "--weights", "int3"])


def test_importing_the_converter_does_not_import_torch():
    program = (
        "import sys, convert; "
        "print([m for m in ('torch', 'diffusers', 'safetensors') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
