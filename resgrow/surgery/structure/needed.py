"""Which operations a model's results are made of."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from resgrow.surgery.structure.liveness import operation
from resgrow.surgery.structure.trace import Traced

# The same numbers in another place: reading them is reading what they were.
MOVES = frozenset(
    name
    for names in (
        "dropout feature_dropout alpha_dropout clone contiguous alias detach to _to_copy",
        "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t numpy_T movedim",
    )
    for name in names.split()
)
# They read no numbers.
SHAPE_ONLY = frozenset(("zeros_like", "new_zeros"))


def needed(graph: Traced, without: tuple[Node, Node] | None = None, but: Collection[str] = ()) -> set[Node]:
    """
    Args:
        without: an operation whose reading of another one does not count.
        but: names of operations that count as reading nothing.
    """
    open_, seen = list(graph.outputs), set(graph.outputs)
    while open_:
        node = open_.pop()
        for each in () if operation(node) in but else node.all_input_nodes:
            if each not in seen and (node, each) != without:
                seen.add(each)
                open_.append(each)
    return {node for node in seen if node.op != "placeholder"}
