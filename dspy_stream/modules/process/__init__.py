"""``isolation="process"``: parts whose code runs in worker processes, and a flow that outlives them.

The parent starts ``python -m dspy_stream.cli.worker`` anew for each worker, with pipes to its standard
input and output. Nothing is forked from a process that has threads, and nothing is pickled: the
worker makes the module from the user's own code, by name, and rows, questions and answers travel as
JSON. A worker has no key and asks no model: its questions go to the parent, which puts them.
"""
