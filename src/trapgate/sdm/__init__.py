"""The SDM's vocabulary: names and numbers, no behaviour."""
