"""The fourth set: written after the diagnosis had been mended by the third, to see what it says of others."""
