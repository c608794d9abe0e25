"""Real servers for tests: each starts once, however many processes test, and none outlives them."""
