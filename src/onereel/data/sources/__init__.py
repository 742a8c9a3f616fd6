"""One file per annotation format; each makes an Arrow table with the columns of `data.annotations`."""
