"""Which layer should grow, and which can shrink? Rules that name one, against trying them all.

python -m resgrow.experiments.localise grow|shrink --out DIR [--seeds N ...]
"""
