"""What lies on disk: manifest, files, engine entries; of structsam only its errors and models."""
