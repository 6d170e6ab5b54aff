"""Training methods over trl's trainers. Only this package knows trl."""
