"""The executor ``ray``, on a cluster of two nodes in this machine."""
