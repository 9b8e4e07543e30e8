"""What a run found, as data, tables, pictures and a page; and several runs side by side.

`build` reads a run's folders once into the content of `report.json`; everything shown is rendered
from that content alone. Only the modules named `figures*` import matplotlib.
"""
