"""What a placement costs: traffic under contention and address translation (modelled)."""
