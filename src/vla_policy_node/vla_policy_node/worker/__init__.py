"""A policy in a process of its own: the node side (`client`), the worker side (`child`), and what they say (`wire`)."""
