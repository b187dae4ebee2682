"""The twenty-second set: mistakes that people make most often, by four people who had not read the mechanism."""
