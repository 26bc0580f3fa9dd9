"""What is decided about a run: what it could not know, and what people and rules make of it."""
