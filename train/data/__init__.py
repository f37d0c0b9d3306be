"""Data sets in the formats in which they are released, as conversations that the trainer takes.

One file an adapter (llava.py, textvqa.py, vizwiz.py, local.py): it turns an entry of the release into a `Row`. To add
a data set, write such a file and name it in `registry.py`, with an example in `source.py`, of which `--help` is made.
"""
