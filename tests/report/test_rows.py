from __future__ import annotations

import pytest
from example_run import network, summary

from resgrow.report.rows import count, duration, result_rows


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (77_754, "77,754"), (999_999, "999,999"), (1_234_567, "1.23 M"), (4.1e10, "41.00 G")],
)
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5e-4, "250 µs"),
        (1.5e-3, "1.50 ms"),
        (0.25, "250.00 ms"),
        (59, "59.0 s"),
        (119.9, "119.9 s"),
        (600, "10.0 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_rows():
    rows = {row.label: (row.dense, row.sized, row.change, row.better) for row in result_rows(summary())}
    assert rows == {
        "Test accuracy": ("98.00 %", "97.00 %", "-1.00 points", False),
        "Test error": ("2.00 %", "3.00 %", "+1.00 points", False),
        "Parameters": ("1,000", "100", "× 0.1", True),
        "Multiply-accumulates per image": ("20,000", "5,000", "× 0.25", True),
        "Latency, batch 1": ("2.00 ms", "1.00 ms", "2.00× faster", True),
        "Latency, batch 64": ("20.00 ms", "20.00 ms", "equal", None),
        "Training time": ("10.0 s", "15.0 s", "× 1.5", False),
    }


def test_zeros_that_are_stored_are_told():
    sized = network(params=100, stored_params=400, macs=5_000, computed_macs=8_000)
    rows = {row.label: row.sized for row in result_rows(summary(sized=sized))}
    assert rows["Parameters"] == "100"
    assert rows["Parameters stored, zeros included"] == "400"
    assert rows["Multiply-accumulates, zeros included"] == "8,000"


def test_a_slower_network_is_called_slower():
    sized = network(latency={"1": 0.004, "64": 0.02})
    rows = {row.label: (row.change, row.better) for row in result_rows(summary(sized=sized))}
    assert rows["Latency, batch 1"] == ("2.00× slower", False)
