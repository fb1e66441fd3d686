"""One-shot quality: which units to cut, where, and with which compensation. See `__main__.py`."""
