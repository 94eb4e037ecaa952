"""Which layer should grow, and which can shrink? Rules that name one, against trying them all.

resgrow experiment ripple [--only grow shrink]
"""
