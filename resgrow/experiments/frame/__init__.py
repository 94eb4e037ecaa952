"""What all experiments share: what one is, how it is run, kept, resumed and told, and how a book is made of them.

resgrow experiment NAME [NAME ...] [--quick]

An experiment is an `Experiment` in a module of its own and a row of `REGISTRY` in ``registry.py``.
"""
