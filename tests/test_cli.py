"""The command line: exit codes that scripts can rely on, JSON and nothing else, a fast --help, Ctrl-C that is safe."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from tagseg import cli
from tagseg._version import VERSION
from tagseg.disk import lock
from tagseg.runs.run import MARKER
from tagseg.runs.setup import own_folder
from tiny import Tiny

COMMANDS = ("demo", "doctor", "plan", "run", "predict", "refine", "saliency", "evaluate", "report", "cache")
HERE = Path(tiny.__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1",
               "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), *filter(None, sys.path)])}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`tagseg run` takes Ctrl-C and SIGTERM for itself; the tests want them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def code_and_error(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(list(words))
    return code, capsys.readouterr().err


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command prints with --json; anything else on standard output would not parse."""
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# ---- 2: usage ----

@pytest.mark.parametrize(("change", "says"), [
    (lambda words: ["camm", *words[1:]], "method 'camm' is unknown.*nearest: cam"),
    (lambda words: [*words, "--set", "classifer.stride=8"], r"'classifer.stride' is unknown; did you mean classi"),
    (lambda words: [*words, "--set", "classifier.stride=soon"], "classifier.stride"),
    (lambda words: [*words, "--set", "classifier.stride"], "expected NAME=VALUE"),
    (lambda words: [*words, "--train", "trian"], "split 'trian' is unknown, expected one of train, val"),
    (lambda words: [*words, "--budget", "qick"], "budget 'qick' is unknown; expected one of quick, standard, paper"),
    (lambda words: [*words, "--device", "tpu"], "expected one of auto, cpu, cuda"),
    (lambda words: [*words, "--set", "crf.device=gpu"], "setting crf.device 'gpu': expected one of auto, cpu, cuda"),
    (lambda words: [*words, "--precision", "fp64"], "expected auto, bf16 or fp32"),
    (lambda words: [*words, "--config", "none.yaml"], r"none.yaml: cannot be read"),
    (lambda words: [words[0], "scenes:basik", *words[2:]], "basik.*basic"),
    (lambda words: [words[0], "no/such/folder", *words[2:]], "expected a folder of images"),
])
def test_what_was_asked_cannot_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str], says: str,
                                       change: Callable[[list[str]], list[str]]) -> None:
    import re

    code, error = code_and_error(capsys, "plan", *change(tiny.words(tmp_path / "run")))
    assert code == 2
    assert error.startswith("error: ")
    assert re.search(says, error), error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_unknown_split_of_a_folder_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.photos(tmp_path / "photos", count=4)
    (data / "splits").mkdir()
    (data / "splits" / "train.txt").write_text("000\n001\n")
    code, error = code_and_error(capsys, "plan", *tiny.words(tmp_path / "run", "--train", "trian", data=str(data)))
    assert code == 2
    assert "'trian'" in error
    assert "train" in error.replace("trian", "")


def test_unknown_options_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "cam", "photos"]
    for words in (["fit"], [], ["run"], [*asked, "--sed", "3"], [*asked, "--bud", "quick"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 2
    capsys.readouterr()


def test_report_and_cache_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_and_error(capsys, "report", str(tmp_path)) == (
        2, f"error: {tmp_path}: holds no report.json; give the --out folder of a finished `tagseg run`\n")
    assert code_and_error(capsys, "cache", "ls", str(tmp_path / "none"))[0] == 2


# ---- 3, 4, 5: data, machine, integrity ----

def test_data_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.photos(tmp_path / "photos", count=4)
    (data / "images" / "001.png").write_bytes(b"<html>not found</html>")
    code, error = code_and_error(capsys, "plan", *tiny.words(tmp_path / "run", data=str(data)))
    assert code == 3
    assert "001.png" in error
    (data / "images" / "001.png").unlink()
    (data / "tags.csv").write_text("file,tags\n000.png,\n002.png,\n003.png,\n")
    code, error = code_and_error(capsys, "plan", *tiny.words(tmp_path / "run", data=str(data)))
    assert code == 3
    assert "tag" in error


def test_missing_weights_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> Path:
        raise OSError("network is unreachable")

    monkeypatch.setattr("tagseg.data.weights.download", offline)
    monkeypatch.delenv("TAGSEG_WEIGHTS", raising=False)
    words = tiny.words(tmp_path / "run", "--backbone", "mobilenet_v2")
    code, error = code_and_error(capsys, "run", *words)
    assert code == 4
    parts = ("mobilenet_v2.safetensors", "https://download.pytorch.org/", "sha256", "TAGSEG_WEIGHTS", "--weights none")
    assert [part for part in parts if part not in error] == []
    code, error = code_and_error(capsys, "plan", *words, "--weights", str(tmp_path / "w.pth"))
    assert code == 4
    assert "there is no such file" in error


def test_a_run_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_folder(tmp_path / "run", MARKER)
    with lock(tmp_path / "run" / ".lock", wait=False):
        code, error = code_and_error(capsys, "run", *tiny.words(tmp_path / "run"))
    assert code == 4
    assert "in use by process" in error


def test_a_flipped_bit_in_the_weights(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained.out, tmp_path / "run")
    file = tmp_path / "run" / "weights" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(bytes(data))
    images = tiny.photos(tmp_path / "new", count=1) / "images"
    code, error = code_and_error(capsys, "predict", str(tmp_path / "run"), str(images), "--out", str(tmp_path / "o"))
    assert code == 5
    assert "weights.safetensors" in error
    assert not (tmp_path / "o").exists()


def test_a_traceback_only_with_debug(tmp_path: Path) -> None:
    from tagseg.types import UsageError

    with pytest.raises(UsageError):
        cli.main(["plan", "camm", "scenes:basic", "--debug"])


def test_memory_that_does_not_suffice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device: str) -> None:
        raise MemoryError

    monkeypatch.setattr("tagseg.runs.doctor.doctor", full)
    code, error = code_and_error(capsys, "doctor")
    assert code == 4
    assert error.startswith("error: out of memory")


def test_what_nobody_foresaw_is_said_without_a_traceback(capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("tagseg.runs.doctor.doctor", broken)
    code, error = code_and_error(capsys, "doctor")
    assert code == 1
    assert "ZeroDivisionError" in error
    assert "--debug" in error
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "--debug"])


def test_a_list_of_classes_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", str(tmp_path), str(tmp_path), "--classes", str(tmp_path / "no.txt"))
    code, error = code_and_error(capsys, *words)
    assert code == 2
    assert "no.txt" in error


# ---- 130: Ctrl-C ----

def test_ctrl_c_stops_after_the_step_and_the_printed_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    words = tiny.words(tmp_path / "a run", "--cache", str(tmp_path / "cache"))  # a space, to be quoted
    running = subprocess.Popen([sys.executable, "-m", "tagseg.cli", "run", *words], env=ENVIRONMENT, cwd=tmp_path,
                               text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stderr is not None
    said = [next(line for line in running.stderr if line.startswith("localize.classify.train"))]
    running.send_signal(signal.SIGINT)
    out, rest = running.communicate(timeout=120)
    said += rest.splitlines()
    assert running.returncode == 130, rest
    assert out == ""
    assert "the same command goes on" in rest
    assert said[-1] == f"go on with: tagseg run {shlex.join(words)}"
    assert "Traceback" not in rest
    assert list((tmp_path / "cache").glob("*.partial/half-done/checkpoint-*.json"))

    monkeypatch.chdir(tmp_path)
    again = shlex.split(said[-1].removeprefix("go on with: tagseg "))
    scores = document(capsys, *again)
    assert scores["method"] == "cam"
    assert (tmp_path / "a run" / "report.html").is_file()
    listed = json.loads((tmp_path / "a run" / "plan.json").read_text())
    assert [s["state"] for s in listed] == ["to do"] * 8  # as it was planned when it went on


# ---- what is printed ----

def test_help_is_fast_and_imports_nothing_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = [sys.executable, "-m", "tagseg.cli", "--help"]
    done = subprocess.run(asked, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.5
    for command in COMMANDS:
        assert f"    {command} " in done.stdout
    code = "import sys, tagseg.cli; tagseg.cli.parser(); print({'torch', 'numpy', 'PIL', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_one_line_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.rsplit("example: tagseg ", 1)[1]
    assert cli.parser().parse_args(shlex.split(example)).command == command


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"tagseg {VERSION}\n"


def test_run_prints_its_scores_as_json(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tiny.words(tmp_path / "run", "--cache", str(trained.cache))
    found = document(capsys, "run", *words)
    assert found == json.loads((tmp_path / "run" / "scores.json").read_text())
    assert found["val"] == json.loads((trained.out / "scores.json").read_text())["val"]
    command = json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
    assert command.startswith("tagseg run cam 'scenes:basic?train=24&val=12&size=48' --out run ")
    assert str(tmp_path) not in (tmp_path / "run" / "report.html").read_text()
    assert str(tmp_path) not in (tmp_path / "run" / "scores.json").read_text()


def test_run_prints_a_table_for_people(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *tiny.words(tmp_path / "run", "--cache", str(trained.cache))]) == 0
    said = capsys.readouterr()
    assert f"{100 * trained.document['scores']['val']['auto']['miou']:.1f}" in said.out
    assert "masks read by the fit: 0" in said.err
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said.err


def test_plan_lists_stages_and_their_state(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tiny.words(tmp_path / "run", "--cache", str(trained.cache), "--set", "crf.srgb=7")
    rows = document(capsys, "plan", *words)
    assert [(r["stage"], r["state"]) for r in rows] == [
        ("localize.classify.train", "done"), ("localize.cam.maps", "done"), ("localize.operating_point.auto", "done"),
        ("refine.crf.labels", "to do"), ("segment.train.segmenter", "to do"), ("segment.predict.labels", "to do"),
        ("segment.predict.labels", "to do"), ("localize.cam.maps", "done")]
    assert cli.main(["plan", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("to do  refine.crf.labels")
    assert rows[3]["key"] in lines[3]
    assert not (tmp_path / "run").exists()


def test_predict_writes_masks(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tiny.photos(tmp_path / "new", count=3) / "images"
    found = document(capsys, "predict", str(trained.out), str(images), "--out", str(tmp_path / "o"), "--device", "cpu",
                     "--save", "mask,confidence", "--limit", "2")
    assert (found["images"], found["bad_files"], found["saved"]) == (2, 0, ["mask", "confidence"])
    assert len(list((tmp_path / "o").glob("*.png"))) == 2
    assert cli.main(["predict", str(trained.out), str(images), "--out", str(tmp_path / "o"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"3 images -> {tmp_path / 'o'}\n"


def test_evaluate_scores_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.photos(tmp_path / "photos", count=4)
    other = tiny.photos(tmp_path / "other", count=4, masks="other")
    truth = str(data / "masks")
    found = document(capsys, "evaluate", truth, truth, "--classes", str(data / "classes.txt"))
    assert found["miou"] == 1.0
    assert found["classes"] == (data / "classes.txt").read_text().split()
    words = ("evaluate", str(other / "masks"), truth, "--classes", str(data / "classes.txt"))
    assert document(capsys, *words)["miou"] == 0.0
    assert cli.main(["evaluate", truth, truth]) == 0
    assert "100.0" in capsys.readouterr().out
    (other / "masks" / "002.png").unlink()
    code, error = code_and_error(capsys, "evaluate", str(other / "masks"), truth)
    assert code == 3
    assert "1 of 4 masks" in error


def test_report_is_written_again(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained.out, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    found = document(capsys, "report", str(tmp_path / "run"))
    assert found == json.loads(json.dumps(trained.document["scores"]))
    assert (tmp_path / "run" / "report.html").read_bytes() == (trained.out / "report.html").read_bytes()


def test_doctor_examines_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = document(capsys, "doctor", "--device", "cpu")
    assert found["ok"] is True
    assert all(check["ok"] for check in found["checks"])
    assert found["facts"]["tagseg"] == VERSION
    assert list(tmp_path.iterdir()) == []

    def broken() -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("tagseg.runs.doctor._image", broken)
    assert cli.main(["doctor", "--device", "cpu"]) == 4
    assert "FAIL images: draw a scene, encode, decode: OSError: no space left on device" in capsys.readouterr().out


def test_the_cache_is_listed_and_cleaned(trained: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained.cache, tmp_path / "cache", ignore=shutil.ignore_patterns(".locks"))
    cache = str(tmp_path / "cache")
    entries = {e["name"]: e for e in document(capsys, "cache", "ls", cache)}
    model = entries[trained.fitted.model.path.name]
    assert str(trained.out.resolve()) in model["used_by"]
    assert model["megabytes"] > 0.01
    orphan = tmp_path / "cache" / f"refine.crf.labels-{'0' * 24}"
    shutil.copytree(trained.fitted.labels.path, orphan)
    before = sorted(p.name for p in (tmp_path / "cache").iterdir())
    assert orphan.name in [e["name"] for e in document(capsys, "cache", "gc", cache, "--dry-run")]
    assert orphan.exists()
    monkeypatch.setenv("TAGSEG_CACHE", cache)
    removed = {e["name"] for e in document(capsys, "cache", "gc")}
    assert orphan.name in removed
    assert not removed & {s["stage"] + "-" + s["key"][:24] for s in trained.document["lineage"]}
    left = {p.name for p in (tmp_path / "cache").iterdir() if p.name != ".locks"}
    assert left == set(before) - removed
