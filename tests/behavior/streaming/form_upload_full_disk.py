"""The two apps where no file grows past 64 KiB: the kernel fails the next write."""

import resource

from recipes.streaming.form_upload import app
from tests.behavior.streaming.naive_form_upload import app as naive

MAX_FILE = 64 * 1024
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, hard))

__all__ = ["app", "naive"]
