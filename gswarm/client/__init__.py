"""The client node: the agent that runs on each machine."""
