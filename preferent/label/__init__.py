"""People give preferences: a page, a server and a database, and the files that come of it."""
