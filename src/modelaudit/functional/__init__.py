"""Pure tensor mathematics of the papers: no I/O, no logging, no model, no hidden randomness.

Keys in brackets, such as [DDE22], are listed in ``docs/references.md``. [O] marks a statistic of
this project that no paper has.
"""
