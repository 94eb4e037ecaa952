"""When and how much: one object beside a training loop that moves a model towards a budget."""

from resgrow.controller.budget import Budget
from resgrow.controller.controller import Controller
from resgrow.controller.history import Move
from resgrow.controller.trust import Trust

__all__ = ["Budget", "Controller", "Move", "Trust"]
