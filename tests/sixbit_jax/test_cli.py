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
