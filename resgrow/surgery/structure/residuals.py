"""Residual branches of a whole model: what is added to the very stream that it reads, and can go in one piece.

An addition has one where one operand is read, on whatever way, by the other: ``x + f(x)``. Nothing is known of classes
of blocks, and what comes behind the addition does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from torch import nn
from torch.fx import Node

from resgrow.surgery.structure.branches import zeroed_by
from resgrow.surgery.structure.call import module_paths, shapes
from resgrow.surgery.structure.liveness import operation
from resgrow.surgery.structure.needed import MOVES, needed
from resgrow.surgery.structure.trace import Traced


@dataclass(frozen=True)
class ResidualBranch:
    """``f`` of one ``x + f(x)``.

    Attributes:
        path: the module that it makes up, or the part of it in which it ends where one has several branches.
        last: parameters which, zero, make the branch zero.
        parameters: all that nothing outside of the branch reads, ``last`` among them.
        result: what is added.
        addition: where.
        inside: all operations that nothing outside of the branch reads.
    """

    path: str
    last: tuple[str, ...]
    parameters: tuple[str, ...]
    result: Node
    addition: Node
    inside: frozenset[Node]


def residuals(model: nn.Module, graph: Traced) -> list[ResidualBranch]:
    """Those that end in parameters of their own, in the order of their additions; some can be inside others."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases = dict(model.named_parameters(remove_duplicate=False))
    users: dict[str, set[Node]] = {}
    for node in graph.nodes:
        if node.name in graph.stored and graph.stored[node.name] in aliases:
            name = names[id(aliases[graph.stored[node.name]])]
            users.setdefault(name, set()).update(node.users)
    serving, ends = needed(graph), zeroed_by(graph, list(aliases))
    found = []
    for addition, result in _added(graph):
        inside = frozenset(serving - needed(graph, without=(addition, result)))
        own = tuple(name for name in users if users[name] & serving and users[name] & serving <= inside)
        last = tuple(dict.fromkeys(names[id(aliases[name])] for name in ends(result)))
        if last and set(last) <= set(own):
            found.append(ResidualBranch("", last, own, result, addition, inside))
    return [replace(each, path=path) for path, each in zip(_paths(found, graph), found, strict=True)]


def _added(graph: Traced) -> Iterator[tuple[Node, Node]]:
    """Additions, each with one value that is added there to what it was made of."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        operands = _operands(node)
        for stream, branch in (operands, operands[::-1]) if operands else ():
            if _reads(branch, _origin(stream), order):
                yield from _terms(node, branch, order)
                break


def _operands(node: Node) -> list[Node]:
    """The two that are added one to one; none for other operations."""
    found = [each for each in node.args if isinstance(each, Node)]
    if operation(node) != "add" or len(found) != 2 or found[0] is found[1] or node.kwargs.get("alpha", 1) != 1:
        return []
    return found if all(shapes(each) == shapes(node) for each in found) else []


def _terms(addition: Node, branch: Node, order: dict[Node, int]) -> Iterator[tuple[Node, Node]]:
    """Where a sum of branches side by side is added, each of these."""
    parts = _operands(branch)
    apart = bool(parts) and not _reads(parts[0], parts[1], order) and not _reads(parts[1], parts[0], order)
    if apart and len(branch.users) == 1:
        for part in parts:
            yield from _terms(branch, part, order)
    else:
        yield addition, branch


def _origin(node: Node) -> Node:
    while operation(node) in MOVES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _reads(node: Node, source: Node, order: dict[Node, int]) -> bool:
    """Whether a value was made of another."""
    open_, seen = [node], {node}
    while open_:
        for each in open_.pop().all_input_nodes:
            if each is source:
                return True
            if each not in seen and order[each] > order[source]:
                seen.add(each)
                open_.append(each)
    return False


def _paths(branches: Sequence[ResidualBranch], graph: Traced) -> list[str]:
    bases = [_base(each, graph) for each in branches]
    paths = []
    for base, branch in zip(bases, branches, strict=True):
        crowded = not base or any(
            other == base if branch.addition in each.inside else other[: len(base)] == base
            for other, each in zip(bases, branches, strict=True)
            if each is not branch and each.addition not in branch.inside
        )
        tail = branch.last[-1].split(".")[len(base) :]
        paths.append(".".join([*base, *tail[:1]] if crowded else base))
    return [
        path if paths.count(path) == 1 else branch.last[-1].rpartition(".")[0] or branch.last[-1]
        for path, branch in zip(paths, branches, strict=True)
    ]


def _base(branch: ResidualBranch, graph: Traced) -> list[str]:
    """The innermost module with the addition and all layers of a branch."""
    layers = [node for node in branch.inside if any(each.name in graph.stored for each in node.all_input_nodes)]
    inner = [(module_paths(node) or [""])[-1].split(".") for node in (branch.addition, *layers)]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*inner, strict=False))
    return [parts[0] for parts in shared if parts[0]]
