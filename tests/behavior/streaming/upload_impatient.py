"""The recipe with a short patience, so that a test need not wait for half a minute."""

from recipes.streaming import upload

upload.BLOCK_SECONDS = 1
app = upload.app
