"""Whole jobs: training, measuring and writing down what came out."""
