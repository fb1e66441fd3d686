"""The cases with units written by hand are proven here as well."""

from tests.compact.conftest import case, plain_case, tied_case

__all__ = ["case", "plain_case", "tied_case"]
