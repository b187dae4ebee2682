"""The alpha set: layers of networks, each wrong Function written out whole, without a look at compare."""
