"""The safety filter: the one gate between any source of motion and the controller."""
