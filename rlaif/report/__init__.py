"""Pages, terminal tables and cards, made from run directories alone."""
