"""Training, its arguments, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import zfnet
from zfnet import _train


def test_a_run_is_the_commands(run, data, toml, command, tmp_path):
    command("train", "--data", data, "--arch", toml, "--out", tmp_path / "run")
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()
    ours, theirs = (folder / "last" / "model.safetensors" for folder in (run, tmp_path / "run"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_metrics_and_progress(data, toml, tmp_path, capsys):
    run = zfnet.train(arch=toml, data=str(data), out=str(tmp_path / "run"), max_steps=4, learning_rate=1e-3)
    assert max(line["step"] for line in run.metrics) == 4
    assert run.load().classes == ["across", "down"]
    told = capsys.readouterr().err
    assert "recipe: " in told and "learning_rate = 0.001" in told
    again = zfnet.train(data=data, out=tmp_path / "run", resume=True, max_steps=6, learning_rate=1e-3, progress=False)
    assert max(line["step"] for line in again.metrics) == 6
    assert capsys.readouterr().err == ""


def test_dry_run(data, toml, tmp_path):
    told = zfnet.train(data=data, arch=toml, out=tmp_path / "run", dry_run=True, progress=False)
    assert told.startswith("parameters") and "steps " in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, kind, words",
    [
        ({"learning_rat": 1}, TypeError, "unexpected argument 'learning_rat' found"),
        ({"learning_rat": None}, TypeError, "unexpected argument 'learning_rat' found"),
        ({"epochs": "many"}, ValueError, "invalid value 'many' for 'epochs <EPOCHS>'"),
        ({"epochs": -1}, ValueError, "'-1'"),
        ({"schedule": "never"}, ValueError, "plateau, step, constant"),
        ({"milestones": [1, "x"]}, ValueError, "'x'"),
        ({"milestones": {1: 2}}, TypeError, "milestones: expected a number, a text"),
        ({"arch": None}, TypeError, "arch <ARCH>"),
        ({"arch": "nonet"}, ValueError, "nonet"),
        ({"max_bad": 7}, ValueError, "max_bad: expected a share"),
        ({"init_weights": "he", "init_std": 0.1}, ValueError, "init_std is for init_weights normal"),
        ({"data": "nowhere"}, (FileNotFoundError, zfnet.Error), "nowhere"),
    ],
)
def test_wrong_arguments(data, toml, tmp_path, flags, kind, words):
    with pytest.raises(kind) as raised:
        zfnet.train(**{"data": data, "arch": toml, "out": tmp_path / "run", "progress": False, **flags})
    assert words in str(raised.value) and "--" not in str(raised.value)


def test_a_display_that_fails_does_not_end_a_training(data, toml, tmp_path, monkeypatch):
    shown = []

    class Fails(_train.Progress):
        def show(self, *args):
            shown.append(args)
            raise ValueError("no display")

        def end(self):
            raise ValueError("no end")

    monkeypatch.setattr(_train, "Progress", Fails)
    with pytest.warns(RuntimeWarning, match="progress could not be shown to the end: ValueError: no display") as warned:
        run = zfnet.train(arch=toml, data=data, out=tmp_path / "run", max_steps=3, progress=False)
    assert len(shown) == len(warned) == 1
    assert max(line["step"] for line in run.metrics) == 3


def test_ctrl_c_does_not_hide_that_saving_failed(data, toml, tmp_path, monkeypatch):
    out = tmp_path / "run"

    class Interrupts(_train.Progress):
        def show(self, *args):
            if (out / "last").exists():  # steps are made, and there is something to save
                out.rename(tmp_path / "away")
                out.write_text("")
                raise KeyboardInterrupt

    monkeypatch.setattr(_train, "Progress", Interrupts)
    with pytest.raises(BaseException) as raised:  # or a KeyboardInterrupt would end pytest
        zfnet.train(arch=toml, data=data, out=out, epochs=2000, progress=False)
    assert isinstance(raised.value, (OSError, zfnet.Error)) and str(out) in str(raised.value)
    assert isinstance(raised.value.__context__, KeyboardInterrupt)


def test_ctrl_c_saves(data, toml, tmp_path):
    out = tmp_path / "run"
    program = textwrap.dedent(f"""
        import signal, zfnet
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
        try:
            zfnet.train(data={str(data)!r}, arch={str(toml)!r}, out={str(out)!r}, epochs=2000, keep=1)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_size > 4000):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    told, errors = running.communicate(timeout=60)
    assert told == "interrupted\n" and running.returncode == 0, errors
    reached = max(line["step"] for line in zfnet.Run(out).metrics)
    assert reached > 4
    state = json.loads((out / "last" / "state.json").read_text())
    assert state["step"] == reached  # nothing was lost
    more = zfnet.train(data=data, out=out, resume=True, epochs=2000, keep=1, max_steps=reached + 3, progress=False)
    assert max(line["step"] for line in more.metrics) == reached + 3


def test_ctrl_c_ends_a_page(run, data, tmp_path):
    program = textwrap.dedent(f"""
        import _thread, signal, zfnet
        from zfnet import _progress
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
        show = _progress.Progress.show
        def interrupted(self, *args):
            _progress.Progress.show = show
            _thread.interrupt_main()
        _progress.Progress.show = interrupted
        try:
            zfnet.top9({str(run)!r}, {str(data)!r}, out={str(tmp_path / "page")!r})
        except KeyboardInterrupt:
            print("interrupted")
        print(zfnet.top9({str(run)!r}, {str(data)!r}, out={str(tmp_path / "page")!r}, progress=False).path.name)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    # Work that was over before it was told of the interruption has made its page all the same.
    assert done.stdout.splitlines()[-1] == "index.html", done.stderr
    assert "interrupted" in done.stdout


def test_the_command_ends_at_ctrl_c(data, toml, tmp_path):
    path = os.path.join(os.path.dirname(sys.executable), "zfnet")
    out = tmp_path / "run"
    flags = ["--data", data, "--arch", toml, "--out", out, "--epochs", "2000"]
    running = subprocess.Popen([path, "train", *map(str, flags)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (out / "last").exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "stopped; go on with the same command and --resume" in errors


def test_the_module_is_the_command():
    ran = subprocess.run([sys.executable, "-m", "zfnet", "project", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0 and "Usage: zfnet project" in ran.stdout


def test_the_commands_exit_codes():
    path = os.path.join(os.path.dirname(sys.executable), "zfnet")
    called = lambda *args: subprocess.run([path, *args], capture_output=True, text=True)
    assert called("--version").stdout == f"zfnet {zfnet.__version__}\n"
    assert called("--version").returncode == called("train", "--help").returncode == 0
    assert called("nothing").returncode == 2 and "nothing" in called("nothing").stderr
    assert called("inspect", "nonet").returncode == 1
