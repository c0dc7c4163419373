"""The documentation: its sources, and the site that Sphinx makes of them on the machine where it is read.

Nothing is fetched and nothing made is shipped: the sources are package data, :mod:`workbench.docs.reference` writes the
reference from docstrings and schemas, and :func:`workbench.docs.site.build` puts both through Sphinx. So the pages always
describe the code beside them.
"""
