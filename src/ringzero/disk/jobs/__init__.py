"""Block jobs: long work on a disk that a guest goes on using.

`contract` says what a job is, `dirty` holds the map of what is to be copied; one
module for each kind: `mirror`, `backup`, `commit`, `stream`. `listing` keeps the
jobs of one owner. See docs/block-jobs.md.
"""
