"""A small bookshop: the application whose tests stand in this folder."""
