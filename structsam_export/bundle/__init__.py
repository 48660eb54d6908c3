"""What lies on disk: manifest, atomic files, engine entries; imports only `structsam.errors`."""
