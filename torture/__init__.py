"""Does what milepost promises hold when its processes are killed, and would we notice if it did not?

Not shipped. ``python -m torture --help`` lists the commands; results go to ``torture/results`` (not committed).
"""
