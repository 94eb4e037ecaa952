"""What the controller finds on networks that train in seconds, how well it keeps to its promises, what it costs.

resgrow experiment capacity robustness overhead
"""
