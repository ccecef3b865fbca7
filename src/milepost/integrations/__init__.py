"""How does a run reach the training frameworks that people already use?

One thin module per framework over :class:`milepost.Run` and :class:`milepost.ModelCheckpointer`; each imports its
framework, and says which ``pip install`` is missing.
"""
