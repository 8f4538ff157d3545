"""The Vmfile: a Dockerfile's language, and what a machine has beyond a container.

Text in, records out; nothing here opens a file or knows a machine. `lines` joins what stands on
several lines and takes here-documents out, `words` splits, quotes and expands variables,
`instructions` are the records, `grammar` says how each is written, and `parse` is the whole file
with all that is wrong in it.
"""
