"""Reports of a run as data, tables, pictures and a page, and comparisons of several runs.

`build` reads a run's folders once into a `Report`; everything shown is rendered from it alone. Only
the modules named `figures*` import matplotlib.
"""
