"""How do the runs of other trackers become runs here?"""
