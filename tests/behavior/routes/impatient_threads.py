"""The recipe with a short patience, so that a test need not wait for 20 seconds."""

from recipes.routes import def_or_async

def_or_async.READ_SECONDS = 1
app = def_or_async.app
