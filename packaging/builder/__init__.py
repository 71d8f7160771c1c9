"""The steps of the package build. `packaging/build.py` puts them in order.

The folder `packaging` itself is no Python package and must not become one: it would hide PyPI's `packaging`
from everything that is run at the top of the checkout, pytest first.
"""
