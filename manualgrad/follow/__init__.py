"""A page that follows one digit through the equations: x⁰ to J, and δ back to Δw⁰.

``command.py`` is the command, ``quantities.py`` computes what the page shows, ``stations.py`` says where each
equation is used, and ``page.py`` writes one HTML file that loads nothing.
"""
