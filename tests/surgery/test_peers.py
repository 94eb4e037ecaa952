"""compact on other people's architectures: outputs of the masked model, everything that was masked gone."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_nets import IMAGES, PEERS, made
from structure_nets import outputs, random_units

from resgrow.surgery import compact, count_params
from resgrow.surgery.structure import Edit, mask, remove, structure


@pytest.mark.parametrize("name", PEERS)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 9999), share=st.sampled_from([0.2, 0.5, 0.8]))
def test_outputs_of_the_masked_model(name: str, seed: int, share: float) -> None:
    """In float64 to 1e-12 of the largest output; in float32 to 1e-4, which is what sums in another order make of it."""
    model = made(name, seed % 7)
    found = structure(model, (IMAGES,), "test")
    gone = random_units(found.groups, seed, share)
    small = copy.deepcopy(model)
    remove(Edit(small), found.groups, gone)
    mask(model, found.groups, gone)
    expected = outputs(model, IMAGES)
    compacted = compact(model, IMAGES)
    assert type(compacted) is type(model)
    assert count_params(compacted) == count_params(small) < count_params(model)
    assert (outputs(compacted, IMAGES) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert (outputs(small, IMAGES) - expected).abs().max() <= 1e-12 * expected.abs().max()
    single = outputs(compacted.float(), IMAGES.float())
    assert (single - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_stays_of_swin_is_named() -> None:
    """Its heads are the stream's width over their number in torchvision's code; neurons go."""
    found = structure(made("Swin"), (IMAGES,), "test")
    assert found.unknown == [
        "ShiftedWindowAttention cannot lose heads: a head's size is the stream's width over their number, in "
        f"features.{stage}.{block}.attn"
        for stage in (1, 3)
        for block in (0, 1)
    ]
    assert [group.places[0].name for group in found.groups] == [
        f"features.{stage}.{block}.mlp.0.weight" for stage in (1, 3) for block in (0, 1)
    ]
