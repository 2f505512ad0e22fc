"""The coordinator: believes nothing that it has not seen reproduce, and promotes what does."""
