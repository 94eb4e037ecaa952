"""The controller beside other people's training loops: ``resgrow.integrations.lightning`` and ``.transformers``."""
