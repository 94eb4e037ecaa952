"""What the controller finds on networks that train in seconds, how well it keeps to its promises, what it costs.

python -m resgrow.experiments.controller capacity|robustness|overhead --out DIR [--seeds N ...]
"""
