"""The floor under all others: what a user is told when something is refused, and files that are whole or not there."""
