"""The retrieval server by size of the corpus, with each local index, beside a plain one on Search-R1's request path.

make bench-search
"""
