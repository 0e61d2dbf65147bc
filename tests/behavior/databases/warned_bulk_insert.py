"""The naive form with its warnings in the log."""

import warnings

from tests.behavior.databases import naive_bulk_insert

warnings.simplefilter("always")
naive = naive_bulk_insert.app
