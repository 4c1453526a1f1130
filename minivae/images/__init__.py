"""From files, folders and downloads to arrays of uint8 images."""
