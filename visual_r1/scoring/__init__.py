"""How responses are judged and averaged: one scorer a file, all of them over the same responses."""
