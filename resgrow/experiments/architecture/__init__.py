"""Learning architectures by backpropagation: the experiments of Srinivas & Babu, and what they are compared with.

resgrow experiment architecture-learning [--only table classes coefficients depth search finetune]
"""
