"""Tables of malformed sources, each through the real commands, and what must be said of it.

``headers``, ``index``, ``paths``, ``weights``: what is refused; ``accepted``: odd but sound.
``victims``: copies of sources, and the rows of the tables; ``edits``: ways to spoil a shard or an
index of one; ``tensors``: copies that are spoiled tensor by tensor; ``runs``: how each is judged;
``careless``: broken tools, for the controls.
"""
