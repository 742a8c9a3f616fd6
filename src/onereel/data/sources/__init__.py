"""One file per annotation format; each returns an Arrow table with the columns of `data.annotations`."""
