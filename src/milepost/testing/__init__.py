"""How does one know that an extension of milepost keeps its contract?"""
