"""The HTTP API: paths, parameters and its description are made from the table of actions."""
