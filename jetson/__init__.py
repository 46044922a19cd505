"""What a Jetson board says about itself."""
