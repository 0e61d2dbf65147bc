"""The recipe where no file grows past two blocks: the kernel fails the third write."""

import resource

from tests.behavior.streaming.small_upload import BLOCK, app

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK, hard))

__all__ = ["app"]
