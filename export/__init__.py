"""From trained models to the engines that run them."""
