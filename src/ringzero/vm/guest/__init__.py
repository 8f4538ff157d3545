"""What the host knows of the program that runs inside: the agent and its channels."""
