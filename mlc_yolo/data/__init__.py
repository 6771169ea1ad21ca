"""From `data=` to a loader: resolving, listing, images without labels, augmentation, label caches, splits."""
