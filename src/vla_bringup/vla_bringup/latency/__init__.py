"""`./vla bench latency`: what the stack adds to a model. Real nodes as processes; stand-ins for robot and model."""
