"""Learning architectures by backpropagation: the experiments of Srinivas & Babu, and what they are compared with.

python -m resgrow.experiments.architecture NAME --work DIR [--seeds N ...] [--epochs N]
"""
