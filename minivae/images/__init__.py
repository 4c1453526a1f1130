"""From files, folders and downloads to arrays of uint8 images."""

SOURCES = ("housenumbers", "svhn", "svhn-extra")  # what --data takes beside paths
