"""Deleting a barrier or a wait from a real kernel makes the tests of its family fail."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest
import simt_build


@pytest.mark.slow
@pytest.mark.parametrize("path", mutants.kernel_files(), ids=lambda path: path.name)
def test_a_synchronisation_is_missed(path: Path) -> None:
    """One of each file; ``python tests/simt/mutants.py`` tries all."""
    try:
        simt_build.build()
    except simt_build.NoCompilerError as error:
        pytest.skip(str(error))
    of_file = mutants.mutants(path)
    mutant = of_file[len(of_file) // 2]
    assert mutants.caught(mutant), f"nobody misses {mutant}"
