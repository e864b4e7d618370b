import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sixbit_jax import cli


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_explains_the_command_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"sixbit {command}" in text
    assert "--debug" in text
    assert max(len(line) for line in text.splitlines()) <= 88


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for command, summary in cli.COMMANDS.items():
        assert command in text
        assert " ".join(summary.split()) in " ".join(text.split())


@pytest.mark.parametrize("argv", [[], ["unknown"], ["inspect"], ["inspect", "--wrong"]])
def test_wrong_usage_is_a_usage_error(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == cli.USER_ERROR
    assert "usage: sixbit" in capsys.readouterr().err


def test_an_error_is_one_message_without_a_traceback(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == cli.USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sixbit inspect: error: ")
    assert str(tmp_path) in captured.err
    assert "Traceback" not in captured.err


def test_debug_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(ValueError, match="expected a diffusers directory"):
        cli.main(["inspect", str(tmp_path), "--debug"])


def test_a_full_device_is_explained_and_other_runtime_errors_are_not(
    tmp_path, monkeypatch, capsys
):
    from sixbit_jax.commands import inspect

    def fail(args):
        raise RuntimeError(args.directory.name)

    monkeypatch.setattr(inspect, "run", fail)
    assert cli.main(["inspect", "RESOURCE_EXHAUSTED: 9 GiB"]) == cli.USER_ERROR
    message = capsys.readouterr().err
    assert "not enough device memory" in message
    assert "9 GiB" in message
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["inspect", "a bug"])


def test_an_interrupt_is_no_traceback(tmp_path, monkeypatch, capsys):
    from sixbit_jax.commands import inspect

    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "run", interrupt)
    assert cli.main(["inspect", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err


# What a closed or full standard output does shows in a process of its own only.
FULL = """
import io, os, sys
from sixbit_jax import cli
from sixbit_jax.commands import inspect

def run(args):
    print(str(args.directory))
    return 0

inspect.run = run
sys.exit(cli.main(["inspect", *sys.argv[1:]]))
"""


def inspect_process(directory, code=FULL, before=(), **options):
    # argparse keeps silent about help that it cannot write, if it learns of it at once.
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [*before, sys.executable, "-c", code, directory],
        stderr=subprocess.PIPE,
        check=False,
        env=buffered,
        cwd=Path(cli.__file__).parents[1],
        **options,
    )


def test_a_closed_standard_output_is_one_message():
    # A shell closes it: after JAX has started, a fork of this process is a warning.
    done = inspect_process("a", before=("sh", "-c", 'exec "$@" >&-', "sh"))
    assert done.returncode == cli.USER_ERROR
    assert done.stderr.decode() == (
        "sixbit: error: standard output: expected a place to print to, found none\n"
    )


TABLE = """
from sixbit_jax.report.tables import print_table, table

def run(args):
    print_table(table(["column"], [["row"]]))
    return 0
"""


@pytest.mark.parametrize("change", ["", TABLE], ids=["text", "table"])
def test_a_reader_that_left_is_one_message(change):
    read, write = os.pipe()
    os.close(read)
    code = FULL.replace("inspect.run = run", change + "\ninspect.run = run")
    done = inspect_process("a", code=code, stdout=write)
    os.close(write)
    assert done.returncode == cli.USER_ERROR
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sixbit inspect: error: standard output: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("word", ["a", "--help"])
def test_a_full_disk_under_standard_output_is_one_message(word):
    with open("/dev/full", "w") as full:
        done = inspect_process(word, stdout=full)
    assert done.returncode == cli.USER_ERROR
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert "No space left" in lines[0]


def test_a_name_that_is_no_text_is_printed():
    name = os.fsdecode(b"no\xff")
    done = inspect_process(name, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stdout == b"no\\udcff\n"


def test_a_full_disk_during_the_work_is_one_message(tmp_path, monkeypatch, capsys):
    import errno

    from sixbit_jax import files
    from sixbit_jax.commands import inspect

    def fill(args):
        with files.replaced_file(tmp_path / "out") as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(inspect, "run", fill)
    (tmp_path / "out").write_text("earlier")
    assert cli.main(["inspect", "a"]) == cli.USER_ERROR
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "No space left on device" in captured.err
    assert (tmp_path / "out").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_too_little_memory_is_explained(monkeypatch, capsys):
    from sixbit_jax.commands import inspect

    def fail(args):
        raise MemoryError("Unable to allocate 9 PiB")

    monkeypatch.setattr(inspect, "run", fail)
    assert cli.main(["inspect", "a"]) == cli.USER_ERROR
    assert "not enough memory" in capsys.readouterr().err


@pytest.fixture
def converted(tmp_path):
    from convert import convert
    from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

    convert(write_tiny_checkpoint(tmp_path / "source"), tmp_path / "model")
    return tmp_path / "model"


def flip_the_middle(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_inspect_verifies_checksums_when_asked_to(converted, capsys):
    argv = ["inspect", str(converted), "--json"]
    assert cli.main(argv) == 0
    assert "not read" in json.loads(capsys.readouterr().out)["checksums"]
    assert cli.main([*argv, "--verify"]) == 0
    assert "verified, " in json.loads(capsys.readouterr().out)["checksums"]
    files = (p for p in (converted / "rest").rglob("*") if p.is_file())
    flip_the_middle(max(files, key=lambda f: f.stat().st_size))
    assert cli.main(argv) == 0
    assert cli.main([*argv, "--verify"]) == cli.USER_ERROR
    captured = capsys.readouterr()
    assert "damaged items:\n  rest: " in captured.err


def test_inspect_notices_truncated_and_missing_items_without_being_asked(
    converted, capsys
):
    files = (p for p in (converted / "rest").rglob("*") if p.is_file())
    file = max(files, key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    (converted / "transformer_blocks.0").rename(converted / "gone")
    assert cli.main(["inspect", str(converted)]) == cli.USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "rest: expected" in captured.err
    assert "transformer_blocks.0: expected" in captured.err


def test_inspect_says_that_an_earlier_version_stored_no_checksums(converted, capsys):
    file = converted / "sixbit.json"
    values = json.loads(file.read_text())
    del values["checksum"], values["checksums"]
    file.write_text(json.dumps(values))
    for more in ([], ["--verify"]):
        assert cli.main(["inspect", str(converted), "--json", *more]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["checksums"] == "none: made by an earlier version"


def test_inspect_describes_both_networks_of_a_pair(converted, tmp_path, capsys):
    import shutil

    from sixbit_jax.checkpoint.pair import NETWORKS, write_description

    pair = tmp_path / "pair"
    pair.mkdir()
    write_description(pair, 0.875)
    for name in NETWORKS:
        shutil.copytree(converted, pair / name)
    assert cli.main(["inspect", str(pair), "--json", "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["boundary"] == 0.875
    assert [n["kind"] for n in facts["networks"].values()] == ["converted"] * 2
    assert cli.main(["inspect", str(pair)]) == 0
    text = capsys.readouterr().out
    assert "high_noise (steps from 0.875" in text
    (pair / "pair.json").write_text((pair / "pair.json").read_text().replace("7", "3"))
    assert cli.main(["inspect", str(pair)]) == cli.USER_ERROR
    assert "damaged or changed by hand" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["config.json", "scheduler_config.json", "safetensors"]
)
def test_a_changed_bit_of_the_bundled_model_is_noticed(tmp_path, capsys, name):
    import shutil

    from sixbit_jax.commands._names import BUNDLED_CHECKPOINT

    shutil.copytree(BUNDLED_CHECKPOINT, tmp_path / "model")
    assert cli.main(["inspect", str(tmp_path / "model"), "--json"]) == 0
    assert "verified, " in json.loads(capsys.readouterr().out)["checksums"]
    found = sorted((tmp_path / "model").rglob(f"*{name}"))
    flip_the_middle(found[0])
    for source in (tmp_path / "model", tmp_path / "model" / "transformer"):
        assert cli.main(["convert", str(source), str(tmp_path / "out")]) == (
            cli.USER_ERROR
        )
        error = capsys.readouterr().err
        assert f"{found[0].name}: expected the checksum" in error
    assert not (tmp_path / "out").exists()
