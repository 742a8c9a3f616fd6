"""Pages on which a person sees what selection keeps of a video; `pages.inspect` writes them."""
