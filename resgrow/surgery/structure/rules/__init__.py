"""One rule for each operation: what it does to labels, and what it ties together.

A rule takes a `Tracker`, the operation's node and its arguments (tensors as `Value`), and returns the result's value or
values. Operations without a rule pin whatever reaches them.
"""

from resgrow.surgery.structure.rules.table import find_rule

__all__ = ["find_rule"]
