"""Other engines that decode with guides."""
