"""Operations that follow one another in a scenario and are alike, carried out together: what is left is what one by one leaves.

Each module looks ahead for one kind of list and hands its rows to a kernel; :mod:`workbench.running` asks them in turn. An
operation that none takes is done alone (:mod:`workbench.engine.calls`), which is what every list is held to.
"""
