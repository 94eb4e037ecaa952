"""Deleting a barrier or a wait from a real kernel makes the tests of its family fail."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest
import simt_build


@pytest.mark.slow
@pytest.mark.parametrize("path", mutants.one_file_per_family(), ids=lambda path: path.name)
def test_a_synchronisation_is_missed(path: Path) -> None:
    """One of the file that has the most; ``python tests/simt/mutants.py`` tries all of all files."""
    try:
        simt_build.build()
    except simt_build.NoCompilerError as error:
        pytest.skip(str(error))
    of_file = mutants.mutants(path)
    tried = of_file[len(of_file) // 2], of_file[0], of_file[-1]  # one that nothing needs would be no fault of the tests
    assert any(mutants.caught(mutant) for mutant in tried), f"nobody misses any of {', '.join(map(str, tried))}"
