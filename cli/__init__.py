"""The command line: thin click commands over the library, one file each."""

from .stopping import before_anything

before_anything()
