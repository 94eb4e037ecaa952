"""resgrow: networks that find their own size."""
