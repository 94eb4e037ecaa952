"""Method ``lecun``: the recursion of diagonals of LeCun (1989) and Becker & LeCun (1989)."""

from resgrow.curvature.lecun.recursion import lecun

__all__ = ["lecun"]
