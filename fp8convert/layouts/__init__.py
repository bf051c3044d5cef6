"""One file per layout: how weights are named and split over files."""
