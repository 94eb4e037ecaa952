"""resgrow experiment: what it runs, keeps, resumes, tells and refuses, by an experiment that is made in a moment."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resgrow._errors import InputError
from resgrow.cli import main
from resgrow.experiments.frame import folder as folders
from resgrow.experiments.frame.chapters import of_chapters
from resgrow.experiments.frame.experiment import Experiment, unknown
from resgrow.experiments.frame.registry import REGISTRY, experiment
from resgrow.experiments.frame.runs import Runs

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def dice(monkeypatch):
    monkeypatch.setitem(REGISTRY, "dice", "dice")


@pytest.fixture
def command(tmp_path, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["experiment", *arguments, "--out", str(tmp_path / "out")])
        return code, *capsys.readouterr()

    return call


def files(of: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in of.iterdir() if path.is_file()}


def test_it_is_run_told_and_not_run_again(command, tmp_path):
    code, out, _ = command("dice", "--only", "fair", "--seeds", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("dice: seed 0, die fair  ")
    assert lines[2].startswith("dice: Yes: the mean is 3.")
    made = files(tmp_path / "out" / "dice")
    assert made.keys() == {"runs.jsonl", "dice.md", "dice.csv", "dice.png", "results.json"}
    assert made["dice.png"].startswith(b"\x89PNG")
    assert command("dice", "--only", "fair", "--seeds", "2")[1].splitlines() == lines[2:]
    assert files(tmp_path / "out" / "dice") == made


def test_it_goes_on_where_it_was_stopped(command, tmp_path):
    command("dice", "--only", "fair", "--seeds", "1")
    path = tmp_path / "out" / "dice" / "runs.jsonl"
    first = path.read_text()
    path.write_text(first + '{"seed": 1, "die": "fa')  # killed while it wrote
    assert len(list(Runs(path.parent))) == 1
    command("dice", "--only", "fair", "--seeds", "2")
    assert path.read_text().startswith(first)
    assert [run["seed"] for run in Runs(path.parent)] == [0, 1]


def test_tables_are_those_of_the_runs(command, tmp_path):
    command("dice", "--only", "fair", "loaded", "--seeds", "2")
    folder = tmp_path / "out" / "dice"
    rows = list(csv.DictReader((folder / "dice.csv").open()))
    assert [(row["seed"], row["die"]) for row in rows] == [
        ("0", "fair"),
        ("0", "loaded"),
        ("1", "fair"),
        ("1", "loaded"),
    ]
    assert rows[1]["nested.least"] == "6"
    assert rows[0]["worst"] == ""  # no number is no number in JSON
    summary = json.loads((folder / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert summary["tables"]["dice"][1]["mean"] == 6
    assert summary["steps"] == 200
    assert summary["seconds"] == pytest.approx(sum(float(row["seconds"]) for row in rows))
    assert summary["seeds"] == [0, 1]
    told = (folder / "dice.md").read_text()
    assert "**Question.** Are dice fair?" in told
    assert "**Control.** Random numbers." in told
    assert "4 runs, seeds 0, 1: 0 seconds, 200 steps in all. " + summary["date"] in told
    assert summary["machines"][0] in told


def test_the_answer_follows_from_the_results(command, tmp_path):
    assert "Yes: the mean is 3.58. It is that of 1 dice." in command("dice", "--only", "fair", "--seeds", "1")[1]
    assert "No: the mean is " in command("dice", "--only", "loaded", "--seeds", "2")[1]
    assert "**Answer.** No: " in (tmp_path / "out" / "dice" / "dice.md").read_text()


def test_quick_runs_never_mix_with_full_ones(command, tmp_path):
    command("dice", "--only", "fair", "--seeds", "1")
    full = files(tmp_path / "out" / "dice")
    command("dice", "--quick")
    quick = tmp_path / "out" / "quick" / "dice"
    (run,) = Runs(quick)
    assert (run["steps"], run["seed"], run["die"]) == (5, 0, "fair")
    assert "`resgrow experiment dice --quick`" in (quick / "dice.md").read_text()
    assert files(tmp_path / "out" / "dice") == full


def test_report_tells_what_is_there_and_runs_nothing(command, tmp_path):
    assert command("dice", "--report")[1] == "dice: no results yet\n"
    assert not (tmp_path / "out").exists()
    command("dice", "--only", "fair", "--seeds", "2")
    before = files(tmp_path / "out" / "dice")
    (tmp_path / "out" / "dice" / "dice.csv").unlink()
    assert command("dice", "--report")[0] == 0
    assert files(tmp_path / "out" / "dice") == before


def test_reports_of_old_runs_keep_their_date_and_machine(command, tmp_path, monkeypatch):
    command("dice", "--only", "fair", "--seeds", "1")
    path = tmp_path / "out" / "dice" / "results.json"
    old = json.loads(path.read_text()) | {"date": "2001-02-03", "machines": ["an older one"]}
    path.write_text(json.dumps(old))
    command("dice", "--report")
    assert json.loads(path.read_text())["machines"] == ["an older one"]
    monkeypatch.setattr(folders, "processor", lambda: "a newer one")
    command("dice", "--only", "fair", "--seeds", "2")
    new = json.loads(path.read_text())
    assert [machine.split(",")[0] for machine in new["machines"]] == ["an older one", "a newer one"]
    assert new["date"] > "2001-02-03"


def test_what_lacks_its_data_says_so_and_the_rest_goes_on(command, tmp_path):
    code, out, errors = command("dice", "--only", "stolen", "fair", "--seeds", "2")
    assert code == 2
    assert errors == "resgrow: error: dice: load: the die must be in its box; get it from the shop\n"
    assert [run["die"] for run in Runs(tmp_path / "out" / "dice")] == ["fair", "fair"]
    assert "Yes" in out


def test_experiments_without_their_data_do_not_keep_the_others(command, monkeypatch, tmp_path):
    monkeypatch.delenv("RESGROW_DATA_DIR", raising=False)
    monkeypatch.setattr("resgrow.experiments.frame.running.REGISTRY", {"architecture-learning": "", "dice": ""})
    code, out, errors = command(
        "all", "--quick", "--data-dir", str(tmp_path / "nothing"), "--book", str(tmp_path / "b.md")
    )
    assert code == 2
    assert "architecture-learning: no results yet" in out
    assert "train-images-idx3-ubyte" in errors
    assert "cifar" in errors
    assert "Fair dice?" in (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sleeping"], r"NAME must be one of .*ripple, .*dice \(got sleeping\); `resgrow experiment --list`"),
        (["dice", "--only", "round"], r"--only of dice takes 'fair', 'loaded', .* \(got \['round'\]\)"),
        (["dice", "--seeds", "0"], r"--seeds must be at least 1 \(got 0\)"),
        (["dice", "--epochs", "-1"], r"--epochs must be at least 1 \(got -1\)"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(command, tmp_path, capsys, arguments, message):
    code, out, errors = command("dice", *arguments)
    assert code == 2
    assert out == ""
    assert re.search(message, errors)
    assert not (tmp_path / "out").exists()


def test_names_questions_and_results_are_listed(command):
    listed = command("--list")[1].splitlines()
    assert [line.split()[0] for line in listed[::2]] == list(REGISTRY)
    assert "dice  (no results)" in listed
    command("dice", "--quick")
    assert any(line.startswith("dice  (1 quick runs, 20") for line in command()[1].splitlines())


def test_the_book_tells_what_folders_hold_and_what_is_not_run(command, tmp_path):
    command("dice", "--only", "fair", "--seeds", "1")
    page = tmp_path / "docs" / "results.md"
    assert command("--book", str(page))[0] == 0
    text = page.read_text()
    assert "* [Fair dice?](#fair-dice): Yes: the mean is 3.58." in text
    assert "## Fair dice?" in text
    assert "![Fair dice?](results/dice.png)" in text
    assert (tmp_path / "docs" / "results" / "dice.png").read_bytes() == (
        tmp_path / "out" / "dice" / "dice.png"
    ).read_bytes()
    assert "## Not run yet" in text
    assert "* `ripple`: Does a layer's ripple" in text
    command("--book", str(page))
    assert page.read_text() == text


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "dice"])
def test_every_experiment_states_itself(name):
    each = experiment(name)
    assert each.title
    assert each.question.endswith("?")
    assert each.control.endswith(".")
    assert each.answer is not unknown
    assert set(each.quick.parts or ()) <= set(each.parts)


def test_the_command_line_does_not_wait_for_experiments():
    code = "import sys, resgrow.cli; resgrow.cli.make_parser(); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "resgrow.cli" in found
    assert not [name for name in found if name.startswith("resgrow.experiments")]


def test_a_signal_stops_it_and_what_was_made_is_told(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from resgrow.cli import main; "
        "from resgrow.experiments.frame.registry import REGISTRY; REGISTRY['dice'] = 'dice'; "
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["experiment", "dice", "--only", "fair", "stopped", "--seeds", "1", "--out", str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-c", code, str(HERE), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert found.returncode == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM" in found.stderr
    assert "Traceback" not in found.stderr
    assert [run["die"] for run in Runs(tmp_path / "dice")] == ["fair"]
    assert "Dice: 1." in (tmp_path / "dice" / "dice.md").read_text()


# ---- chapters ----


def chapters_of(**given):
    def part(value, **more):
        return Experiment(
            question=f"Is it {value}?",
            epochs=value,
            run=lambda runs, settings: [
                runs.make({"seed": seed, "part": part, "epochs": settings.epochs}, lambda: {"value": value})
                for seed in settings.seeds
                for part in settings.only or ("whole",)
            ],
            tell=lambda results: f"{len(results)} of {value}",
            **more,
        )

    return of_chapters(
        {"one": part(1, parts=("a", "b")), "two": part(2, seeds=(0,))},
        title="Both",
        question="Are they?",
        control="None.",
        answer=lambda results: ", ".join(f"{name} {len(own)}" for name, own in results.items()),
        **given,
    )


@pytest.mark.parametrize(
    ("only", "made"),
    [
        ((), {("one", "a"): 3, ("one", "b"): 3, ("two", "whole"): 1}),
        (("one",), {("one", "a"): 3, ("one", "b"): 3}),
        (("one/b", "two"), {("one", "b"): 3, ("two", "whole"): 1}),
    ],
)
def test_chapters_run_by_their_own_defaults(tmp_path, only, made):
    runs, each = Runs(tmp_path), chapters_of()
    each.run(runs, each.settings(only=only))
    results = list(runs)
    keys = [(run["chapter"], run["part"]) for run in results]
    assert {key: keys.count(key) for key in keys} == made
    assert all(run["epochs"] == run["value"] == (1 if run["chapter"] == "one" else 2) for run in results)


def test_chapters_are_told_one_by_one_with_a_table_each(tmp_path):
    runs, each = Runs(tmp_path), chapters_of(quick=("one/a",))
    each.run(runs, each.settings(quick=True))
    assert [(run["chapter"], run["part"], run["seed"]) for run in runs] == [("one", "a", 0)]
    each.run(runs, each.settings(seeds=(7,), epochs=9))
    folders.write(each, "both", runs, tmp_path, quick=False)
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["answer"] == "one 3, two 1"
    assert {name: len(rows) for name, rows in summary["tables"].items()} == {"one": 3, "two": 1}
    assert "### one\n\nIs it 1?\n\n3 of 1\n\n### two" in summary["text"]
    assert (tmp_path / "one.csv").exists()


def test_seconds_of_a_run_are_without_those_made_within_it(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("resgrow.experiments.frame.runs.time.perf_counter", lambda: now[0])
    runs = Runs(tmp_path).within("x")

    def spend(seconds):
        now[0] += seconds
        return {}

    def outer():
        runs.make({"k": 1}, lambda: spend(5))
        return spend(2)

    runs.make({"k": 0}, outer)
    assert {run["k"]: run["seconds"] for run in runs} == {1: 5, 0: 2}


def test_an_experiment_of_no_such_name_is_refused():
    with pytest.raises(InputError, match="got sleeping"):
        experiment("sleeping")
