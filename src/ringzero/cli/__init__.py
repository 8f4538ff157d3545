"""The command line: thin verbs over the layers below, loaded one at a time."""
