"""The twenty-third set: mistakes that people make most often, by three people who had not read the mechanism."""
