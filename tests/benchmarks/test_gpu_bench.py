"""benchmarks/gpu_bench.py: every line of its sections on the CPU, and what becomes of a section that fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_bench
from _gpu_clock import Clock, agree
from _gpu_report import TARGETS, Bench, Cases, Row, Section, markdown, targets_table
from _timing import median_ratio

TINY = Bench(torch.device("cpu"), tiny=True)


@pytest.fixture(autouse=True)
def _threads(threads: None) -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", gpu_bench.SECTIONS)
def test_every_section_runs(name: str, tmp_path: Path) -> None:
    section = gpu_bench.run_section(name, TINY, tmp_path, seconds=60)
    assert section.ended == "complete"
    assert [row.error for row in section.rows if row.error] == []
    assert section.rows
    assert all(row.targets.keys() <= TARGETS.keys() for row in section.rows)
    assert Section.read(tmp_path / f"{name}.json") == section


def test_sections_run_apart_and_are_put_together(tmp_path: Path) -> None:
    assert gpu_bench.main(["--device", "cpu", "--only", "ceilings", "--out", str(tmp_path)]) == 0
    assert Section.read(tmp_path / "ceilings.json").rows[0].case == "copy"
    assert "## ceilings (complete" in (tmp_path / "gpu_bench.md").read_text("utf-8")


def cases(*rows: Callable[[], Iterator[Row]]) -> Callable[[Bench], Cases]:
    return lambda bench: ((f"case {i}", each) for i, each in enumerate(rows))


def right() -> Iterator[Row]:
    yield Row("right", {"us": 1.0})


def wrong() -> Iterator[Row]:
    agree(torch.zeros(2), torch.ones(2), 1e-3)
    yield Row("never")


def test_a_case_that_is_wrong_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_bench.SECTIONS, "ceilings", (cases(right, wrong, right), 1.0))
    section = gpu_bench.run_section("ceilings", TINY, tmp_path, seconds=60)
    assert [row.case for row in section.rows] == ["right", "case 1", "right"]
    assert section.rows[1].error == "AssertionError: wrong by 1.0e+00 of the norm (at most 1e-03 is rounding)"
    assert section.rows[1].error in markdown("title", [section])


def test_ends_with_its_time_and_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_bench.SECTIONS, "ceilings", (cases(right, right), 1.0))
    clock = iter([0.0, 1.0, 2.0, 11.0])
    monkeypatch.setattr(gpu_bench, "perf_counter", lambda: next(clock))
    section = gpu_bench.run_section("ceilings", TINY, tmp_path, seconds=10)
    assert section.ended == "out of time"
    assert Section.read(tmp_path / "ceilings.json").rows == [Row("right", {"us": 1.0})]


def test_what_a_section_leaves_goes_to_the_others() -> None:
    names = list(gpu_bench.SECTIONS)
    left = 200.0
    for i, name in enumerate(names):
        share = gpu_bench.share_of(name, names[i + 1 :], left)
        assert share >= 1
        left -= share + gpu_bench.STARTING
    assert left == pytest.approx(0)
    assert gpu_bench.share_of("select", ["models"], 100) > gpu_bench.share_of("select", ["models", "squared_grad"], 100)
    assert gpu_bench.share_of("select", ["models"], -5) == 1


@pytest.mark.parametrize(("program", "ended"), [("raise SystemExit(3)", "exit code 3"), ("input()", "took too long")])
def test_a_section_that_crashes_or_hangs(
    program: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program.py").write_text("import time\n" + program.replace("input()", "time.sleep(60)"))
    monkeypatch.setattr(gpu_bench, "__file__", str(tmp_path / "program.py"))
    monkeypatch.setattr(gpu_bench, "GRACE", -14.5 if "input" in program else 1.0)
    arguments = gpu_bench.parsed(["--device", "cpu", "--only", "ceilings", "--out", str(tmp_path)])
    section = gpu_bench.run_apart("ceilings", arguments, share=1.0)
    assert ended in section.ended
    assert Section.read(tmp_path / "ceilings.json") == section


def test_targets_are_counted_and_the_worst_is_named() -> None:
    name = "ggn-mc / forward+backward"
    rows = [Row(case, targets={name: value}) for case, value in (("a", 1.2), ("b", 1.4), ("c", 1.25))]
    lines = targets_table([Section("curvature", rows)])
    assert f"| {name} | <= 1.3 | 2 of 3 | 1.25 | 1.4 | b |" in lines
    assert sum("not measured" in line for line in lines) == len(TARGETS) - 1


def test_clock_interleaves_and_keeps_results() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], object]:
        return lambda: order.append(name)

    times = Clock(torch.device("cpu")).measure({"a": [call("a")], "b": [call("b"), call("b")]}, rounds=4)
    assert {name: len(found) for name, found in times.rounds.items()} == {"a": 4, "b": 4}
    last = "".join(order)[-12:]
    assert last.count("a") * 2 == last.count("b")
    assert times.ratio("a", "b") == median_ratio(times.rounds["a"], times.rounds["b"])
    assert times.queued == {"a", "b"}


class FakeCuda:
    """What the clock uses of ``torch.cuda``: time passes by a microsecond with each call and each replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.recording, self.replays = 0.0, False, 0
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = fake.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        class CUDAGraph:
            def replay(self) -> None:
                fake.replays += 1
                fake.now += 1e-6

        @contextmanager
        def graph(_: CUDAGraph) -> Iterator[None]:
            fake.recording = True
            yield
            fake.recording = False

        for name, replacement in (("Event", Event), ("CUDAGraph", CUDAGraph), ("graph", graph)):
            monkeypatch.setattr(torch.cuda, name, replacement)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: setattr(fake, "recording", False))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=60 << 20))

    def call(self) -> None:
        self.now += 0 if self.recording else 1e-6

    def waits_for_the_host(self) -> None:
        if self.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.call()


def test_clock_replays_graphs_and_queues_what_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    clock = Clock(torch.device("cuda"))
    contestants = {"captured": [fake.call] * 4, "queued": [fake.waits_for_the_host] * 4}
    times = clock.measure(contestants, rounds=5)
    assert times.queued == {"queued"}
    assert times.rounds["captured"] == pytest.approx([1e-6 / 4] * 5)  # a replay is one of the fake's microseconds
    assert times.rounds["queued"] == pytest.approx([1e-6] * 5)
    assert fake.replays == 1 + 5 * 1000  # to find out how long it takes, then turns of a millisecond
    assert clock.measure(contestants, graphs=False).queued == set(contestants)


@pytest.mark.parametrize(("nbytes", "sets"), [(1 << 30, 1), (100 << 20, 3), (1, 24)])
def test_clock_takes_buffers_larger_than_the_cache(nbytes: int, sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    assert Clock(torch.device("cuda")).sets(nbytes) == sets
