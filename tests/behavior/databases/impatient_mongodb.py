"""databases/mongodb with little patience."""

from recipes.databases import mongodb

mongodb.TIMEOUT = 1
mongodb.MAX_POOL = 2
app = mongodb.app
