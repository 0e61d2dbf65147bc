"""concurrency/fan_out with time to spare on a machine under load."""

from recipes.concurrency import fan_out

fan_out.DEADLINE = 30
app = fan_out.app
