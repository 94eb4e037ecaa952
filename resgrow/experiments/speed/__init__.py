"""How much faster what is left of a network is: blocks that are skipped, and channels that are gone.

resgrow experiment speed [--only lenet5 resnet20 wide-resnet20]
"""
